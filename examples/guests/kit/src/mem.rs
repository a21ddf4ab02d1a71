//! The memory functions that compiled code calls. `rep movsb` and `rep stosb` are as fast as any on processors with
//! enhanced string moves.

core::arch::global_asm!(
    r#"
.pushsection .text.mem, "ax", @progbits
.global memcpy
.global memmove
.global memset
.global memcmp
.global bcmp
.global strlen
memmove:
  mov rax, rdi
  sub rax, rsi
  cmp rax, rdx
  jb 2f
memcpy:
  mov rax, rdi
  mov rcx, rdx
  rep movsb
  ret
2:                                # the destination overlaps the source from above: backwards
  mov rax, rdi
  mov rcx, rdx
  lea rdi, [rdi + rdx - 1]
  lea rsi, [rsi + rdx - 1]
  std
  rep movsb
  cld
  ret
memset:
  mov r8, rdi
  mov eax, esi
  mov rcx, rdx
  rep stosb
  mov rax, r8
  ret
bcmp:
memcmp:
  xor ecx, ecx
  sub rdx, 8
  jb 2f
1:                                # eight at a time while they are equal
  mov rax, [rdi + rcx]
  cmp rax, [rsi + rcx]
  jne 2f
  add rcx, 8
  cmp rcx, rdx
  jbe 1b
2:
  add rdx, 8
3:
  cmp rcx, rdx
  jae 4f
  movzx eax, byte ptr [rdi + rcx]
  movzx r8d, byte ptr [rsi + rcx]
  inc rcx
  sub eax, r8d
  je 3b
  ret
4:
  xor eax, eax
  ret
strlen:
  xor eax, eax
1:
  cmp byte ptr [rdi + rax], 0
  je 2f
  inc rax
  jmp 1b
2:
  ret
.popsection
"#
);
