# Ring 0: entries, interrupt stubs, services, and the tables that are prebuilt so that nobody computes them at boot.
#
# Some KVM backends interpret ring 0 instruction by instruction, so this file is short on purpose: a few dozen
# instructions lead from either entry to ring 3, where the program runs. Nothing here uses SSE or string instructions.
# Every gate has an interrupt stack of its own, so Rust's red zone is safe even when the program stays in ring 0.

# Boot protocols, as `ringlet_start` is told.
.set KIND_PVH, 1
.set KIND_LINUX, 2

# The page of a processor, found from any interrupt stack by `and reg, -4096`. Mirrored in percpu.rs.
.set CPU_APIC, 0x74
.set CPU_TAKEN, 0x78
.set CPU_NESTED, 0x88
.set CPU_MODE, 0x8c
.set CPU_PENDING, 0x100
.set IST_SERVICE, 0x800
.set IST_INTERRUPT, 0x900
.set IST_FATAL, 0xb00
.set IST_EXCEPTION, 0xe00

# Where rsp is when a gate without an error code has just been entered: five registers below the top of its stack. What
# is in the page is found from there without a register.
.set AT_SERVICE, IST_SERVICE - 40
.set AT_INTERRUPT, IST_INTERRUPT - 40
.set AT_NMI, IST_FATAL - 40

# Port permissions. IOPL 3 would do, but there are KVM backends that forget it and look at the TSS's bitmap instead:
# 8 KiB of zeroes that begin in the processor's page, so that the usual ports cost no page of their own.
.set TSS_PORTS, 0xe00
.set TSS_LIMIT, TSS_PORTS + 0x2000

.set KERNEL_CODE, 0x08
.set KERNEL_DATA, 0x10
.set KERNEL_CODE32, 0x18
.set USER_DATA, 0x23
.set USER_CODE, 0x2b
.set FIRST_TSS, 0x30

# Interrupt stubs, at the image's base: their addresses are constants, which is what lets the assembler build the IDT.
# One that is too long is an error of `.org`.
.set STUBS, {image}
.set EXCEPTION_STUB, 16
.set INTERRUPT_STUBS, STUBS + 32 * EXCEPTION_STUB
.set INTERRUPT_STUB, 8
.set UD_STUB, INTERRUPT_STUBS + 224 * INTERRUPT_STUB
.pushsection .boot.stubs, "awx", @progbits
stubs:
.set vector, 0
.rept 32
  .org stubs + vector * EXCEPTION_STUB
  .if vector == 2
    jmp nmi_entry
  .elseif vector == 13
    jmp gp_entry
  .elseif (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || ((vector >= 29) && (vector <= 30))
    .byte 0x6a, vector            # push vector (the error code is there already)
    jmp exception
  .elseif vector != 6
    .byte 0x6a, 0, 0x6a, vector   # push 0; push vector
    jmp exception
  .endif
  .set vector, vector + 1
.endr
.rept 224
  .org stubs + INTERRUPT_STUBS - STUBS + (vector - 32) * INTERRUPT_STUB
  .byte 0x6a, vector & 0xff       # push the vector, sign-extended: only the low byte counts
  jmp interrupt
  .set vector, vector + 1
.endr
.org stubs + UD_STUB - STUBS
  cmp edi, {halt}
  je halt
  jmp ud_entry
.popsection

.pushsection .note.Xen, "a", @note
.balign 4
.long 4, 4, 18                    # XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long pvh_start
.popsection

.pushsection .boot, "awx", @progbits

# PVH: 32-bit protected mode, no paging, ebx = hvm_start_info.
.code32
.global pvh_start
pvh_start:
  cld
  mov esi, ebx
  mov edi, KIND_PVH
  xor ebp, ebp
  jmp enable_long_mode

# A further processor, from its real-mode trampoline.
ap32:
  mov eax, KERNEL_DATA
  mov ds, ax
  mov ss, ax
  mov ebp, dword ptr [ringlet_ap_index]
  xor edi, edi
  xor esi, esi

enable_long_mode:
  mov eax, offset PML4
  mov cr3, eax
  mov eax, 0x620                  # PAE, OSFXSR, OSXMMEXCPT
  mov cr4, eax
  mov ecx, 0xc0000080             # EFER
  rdmsr
  or eax, 0x100                   # LME
  wrmsr
  mov eax, 0x80010033             # PG, WP, NE, ET, MP, PE
  mov cr0, eax
  lgdt [GDTR]
  .byte 0xea                      # ljmp KERNEL_CODE:to_ring3
  .long to_ring3
  .word KERNEL_CODE

# Linux 64-bit: long mode, rsi = boot_params.
.code64
.global _start
_start:
  cld
  mov edi, KIND_LINUX
  xor ebp, ebp
  mov eax, offset PML4
  mov cr3, rax
  mov eax, 0x620
  mov cr4, rax
  mov eax, 0x80010033
  mov cr0, rax
  lgdt [GDTR]

# ebp = processor, edi = kind, rsi = boot information.
to_ring3:
  lidt [IDTR]
  mov eax, ebp
  shl eax, 4
  add eax, FIRST_TSS
  ltr ax
  mov eax, USER_DATA
  mov ds, eax
  mov es, eax
  mov ecx, ebp
  shl ecx, {slot_shift}
  add ecx, {stack_top}
  mov rsp, rcx
  push rax                        # ss
  sub rcx, 8                      # as if called: a return address that is never used
  push rcx                        # rsp
  push 0x3002                     # rflags: IOPL 3, interrupts off
  push USER_CODE
  lea rax, [ringlet_start]
  push rax
  mov edx, ebp
  iretq

# #UD with the marker of halting in edi: halts, unless an interrupt was taken that the program does not know of yet. An interrupt that
# ends it goes back to the program by itself (see `interrupt`), whose EOI lies ready in ecx, eax and edx for that.
halt:
  cmp dword ptr [rsp + CPU_TAKEN - AT_SERVICE], 0
  jne 1f
  sti
  hlt
halted:                           # an NMI leads here
  cli
1:
  add qword ptr [rsp], 2
  iretq

# #UD: a service call if eax holds the marker, else an exception.
ud_entry:
  push rax
  xor rax, {marker}
  cmp rax, {services}
  jae 1f
  jmp qword ptr [SERVICES + rax * 8]
1:
  pop rax
  .byte 0x6a, 0, 0x6a, 6
  jmp exception

# Services end here: rax is the result, the ud2 is stepped over.
served:
  add rsp, 8
  add qword ptr [rsp], 2
  iretq

# ecx = index; edx:eax = value, r8 = 1 if the processor refused it.
service_rdmsr:
  xor r8d, r8d
rdmsr_at:
  rdmsr
  jmp served

# ecx = index, edi = low, edx = high; r8 = 1 if the processor refused it.
service_wrmsr:
  xor r8d, r8d
  mov eax, edi
wrmsr_at:
  wrmsr
  jmp served

msr_refused:
  xor eax, eax
  xor edx, edx
  mov r8d, 1
  jmp served

# Forgets cached translations.
service_flush:
  mov rax, cr3
  mov cr3, rax
  jmp served

# Goes on in ring 0 (the flat segments are the same but for their privilege).
service_ring0:
  mov rcx, rsp
  and rcx, -4096
  mov dword ptr [rcx + CPU_MODE], 1
  mov qword ptr [rsp + 16], KERNEL_CODE
  mov qword ptr [rsp + 40], KERNEL_DATA
  jmp served

# edi = 0 or 1: interrupts off or on in the program.
service_interrupts:
  and edi, 1
  shl edi, 9
  mov rax, [rsp + 24]
  and rax, -0x201
  or rax, rdi
  mov [rsp + 24], rax
  jmp served

# Calls rcx in ring 0, on the service stack, with rdi as its argument.
service_call:
  call rcx
  jmp served

# ecx = leaf, edx = subleaf; the answer goes to [rdi].
service_cpuid:
  mov r8, rbx
  mov eax, ecx
  mov ecx, edx
  cpuid
  mov [rdi], eax
  mov [rdi + 4], ebx
  mov [rdi + 8], ecx
  mov [rdi + 12], edx
  mov rbx, r8
  jmp served

.balign 8
SERVICES:
  .quad service_rdmsr, service_wrmsr, service_flush, service_ring0
  .quad service_interrupts, service_call, service_cpuid

# #GP: a refused rdmsr or wrmsr is an answer, everything else an exception.
gp_entry:
  cmp qword ptr [rsp + 8], offset rdmsr_at
  je 1f
  cmp qword ptr [rsp + 8], offset wrmsr_at
  je 1f
  .byte 0x6a, 13
  jmp exception
1:
  mov qword ptr [rsp + 8], offset msr_refused
  add rsp, 8
  iretq

# NMI: counted like an interrupt, on the stack for the worst, without an EOI. One that comes just before the processor
# halts keeps it from that.
nmi_entry:
  inc dword ptr [rsp + CPU_PENDING + 2 * 4 - AT_NMI]
  inc dword ptr [rsp + CPU_TAKEN - AT_NMI]
  cmp qword ptr [rsp], offset halt
  jb 1f
  cmp qword ptr [rsp], offset halted
  ja 1f
  mov qword ptr [rsp], offset halted
1:
  iretq

# Interrupts are counted, acknowledged, and left to the program. A spurious one need not be told from others: with
# nothing in service, as always here, an EOI says nothing.
interrupt:
  cmp qword ptr [rsp + 8], offset halted
  jne 2f
  # The processor was halted: what `halt` was entered with is as it was, and its registers may be changed.
  movzx r8d, byte ptr [rsp]
  inc dword ptr [rsp + r8 * 4 + CPU_PENDING - AT_INTERRUPT + 8]
  inc dword ptr [rsp + CPU_TAKEN - AT_INTERRUPT + 8]
  jrcxz 1f
  wrmsr
0:
  sub rsp, AT_INTERRUPT - AT_SERVICE - 8
  add qword ptr [rsp], 2
  iretq
1:
  mov eax, {apic_eoi}
  mov dword ptr [rax], 0
  jmp 0b
2:
  push rax
  push rcx
  movzx ecx, byte ptr [rsp + 16]
  inc dword ptr [rsp + rcx * 4 + CPU_PENDING - AT_INTERRUPT + 24]
  inc dword ptr [rsp + CPU_TAKEN - AT_INTERRUPT + 24]
  cmp dword ptr [rsp + CPU_APIC - AT_INTERRUPT + 24], 1
  jne 3f
  push rdx
  mov ecx, {x2apic_eoi}
  xor eax, eax
  xor edx, edx
  wrmsr
  pop rdx
  pop rcx
  pop rax
  add rsp, 8
  iretq
3:
  mov eax, {apic_eoi}
  mov dword ptr [rax], 0
  pop rcx
  pop rax
  add rsp, 8
  iretq

# Everything else: save all registers, then report from where the program runs. A second exception while the first is
# being reported ends the guest at once, with its vector as the code.
exception:
  push rax
  push rcx
  push rdx
  push rbx
  push rbp
  push rsi
  push rdi
  push r8
  push r9
  push r10
  push r11
  push r12
  push r13
  push r14
  push r15
  mov rax, cr2
  push rax
  mov rdi, rsp
  mov rbx, rsp
  and rbx, -4096
  inc dword ptr [rbx + CPU_NESTED]
  cmp dword ptr [rbx + CPU_NESTED], 1
  jne 2f
  mov eax, USER_DATA
  mov ecx, USER_CODE
  cmp dword ptr [rbx + CPU_MODE], 0
  je 1f
  mov eax, KERNEL_DATA
  mov ecx, KERNEL_CODE
1:
  push rax
  lea rax, [rbx - 8]              # the program's stack, from its top: nobody returns to it
  push rax
  push 0x3002
  push rcx
  lea rax, [ringlet_exception]
  push rax
  iretq
2:
  movzx eax, byte ptr [rsp + 16 * 8]
  or eax, 0x80
  mov edx, 0xf4
  out dx, eax
  mov eax, 0xfe
  out 0x64, al
3:
  cli
  hlt
  jmp 3b

# The real-mode trampoline of further processors: copied to a page below 1 MiB.
.code16
.global ringlet_ap_trampoline
ringlet_ap_trampoline:
  cli
  .byte 0x2e, 0x66, 0x0f, 0x01, 0x16      # lgdtd cs:[gdtr - start]
  .word 1f - ringlet_ap_trampoline
  mov eax, cr0
  or al, 1
  mov cr0, eax
  .byte 0x66, 0xea                        # ljmpl KERNEL_CODE32:ap32
  .long ap32
  .word KERNEL_CODE32
1:
  .word {gdt_limit}
  .long GDT
.global ringlet_ap_trampoline_end
ringlet_ap_trampoline_end:
.code64

.balign 8
GDTR:
  .word {gdt_limit}
  .quad GDT
.balign 8
IDTR:
  .word 0xfff
  .quad IDT
.balign 4
.global ringlet_ap_index
ringlet_ap_index:
  .long 0

.balign 16
GDT:
  .quad 0
  .quad 0x00af9b000000ffff        # kernel code
  .quad 0x00cf93000000ffff        # kernel data
  .quad 0x00cf9b000000ffff        # kernel code, 32 bits
  .quad 0x00cff3000000ffff        # user data
  .quad 0x00affb000000ffff        # user code
.set i, 0
.rept {max_cpus}                  # a TSS for each processor, at the start of its page
  .set address, {stack_top} + (i << {slot_shift})
  .quad 0x0000890000000000 | TSS_LIMIT | ((address & 0xffffff) << 16) | ((address >> 24) << 56)
  .quad 0
  .set i, i + 1
.endr
.popsection

# Processor 0's page, up to where the bitmap goes on in the zeroes behind it.
.pushsection .cpu0, "aw", @progbits
  .long 0
  .quad 0, 0, 0, 0                # rsp0-2 are never used: every gate names an interrupt stack
  .quad {stack_top} + IST_SERVICE, {stack_top} + IST_INTERRUPT, {stack_top} + IST_FATAL, {stack_top} + IST_EXCEPTION
  .quad 0, 0, 0, 0
  .word 0
  .word TSS_PORTS
  .skip 0x1000 - 0x68
.popsection

.pushsection .tables, "aw", @progbits
.balign 4096
.macro gate address, ist, type
  .word (\address) & 0xffff
  .word KERNEL_CODE
  .byte \ist, \type
  .word (\address) >> 16
  .quad 0
.endm
IDT:
.set vector, 0
.rept 32
  .set stub, STUBS + vector * EXCEPTION_STUB
  .if vector == 6
    gate UD_STUB, 1, 0x8e
  .elseif (vector == 2) || (vector == 8) || (vector == 18)
    gate stub, 3, 0x8e
  .elseif (vector == 3) || (vector == 4)
    gate stub, 4, 0xee
  .else
    gate stub, 4, 0x8e
  .endif
  .set vector, vector + 1
.endr
.rept 224
  .set stub, INTERRUPT_STUBS + (vector - 32) * INTERRUPT_STUB
  gate stub, 2, 0x8e
  .set vector, vector + 1
.endr

# Page tables, all accessible to ring 3, accessed and dirty bits preset. The first 2 MiB are in pages of 4 KiB so that
# the null page and the page below each stack are missing; the rest of the first GiB is in pages of 2 MiB. Ring 3 adds
# what lies above when there is such memory, or when a device there is first touched.
.global PML4
PML4:
  .quad PDPT + 0x27
  .skip 4096 - 8
.global ringlet_pdpt
ringlet_pdpt:
PDPT:
  .quad PD0 + 0x27
  .skip 4096 - 8
PD0:
  .quad PT0 + 0x27
.set i, 1
.rept 511
  .quad (i << 21) | 0xe7
  .set i, i + 1
.endr
.global ringlet_pt0
ringlet_pt0:
PT0:
.set i, 0
.rept 512
  .if (i == 0) || ((i >= 256) && (((i << 12) & ((1 << {slot_shift}) - 1)) == 0))
    .quad 0
  .else
    .quad (i << 12) | 0x67
  .endif
  .set i, i + 1
.endr
.popsection
