/* The floor of `bench boot`: the least that boots a guest image and relays its console, in raw system calls.
 *
 *   gcc -O2 -static -o floor floor.c
 *   floor IMAGE.elf [MEMORY_MIB] [CMDLINE]
 *
 * It loads an ELF64 image through its Linux 64-bit entry (vCPU state by two ioctls, no 32-bit code to run first, so it
 * is the faster of the two) or, with the environment variable FLOOR_PVH set, through its PVH entry. Like Ringlet it
 * gives the guest a shared, sealed memfd, the split irqchip and one vCPU with CPUID, and writes each console byte as it
 * comes. It validates nothing beyond what keeps it from crashing on its own images. Exit status: the guest's code,
 * 0 after a reset, 125 for anything else, which is reported on stderr. FLOOR_STATS=1 reports exits and touched pages.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Low guest memory. */
enum { INFO = 0x6000, MAP = 0x6100, BOOT_PARAMS = 0x7000, PML4 = 0x9000, CMDLINE = 0x20000, CMDLINE_MAX = 0x10000 };
enum { GAP_START = 0xC0000000u, SERIAL = 0x3F8, I8042 = 0x64, EXIT = 0xF4, READY = 0xF5 };
static const uint64_t FOUR_GIB = 1ULL << 32;

struct start_info { uint32_t magic, version, flags, modules; uint64_t module_list, cmdline, rsdp, map; uint32_t entries, reserved; };
struct map_entry { uint64_t address, size; uint32_t type, reserved; };
struct e820_entry { uint64_t address, size; uint32_t type; } __attribute__((packed));

static uint8_t *ram;
static uint64_t ram_size;
static int kvm, vm, vcpu;

static void fail(const char *what) {
  fflush(stdout);
  perror(what);
  _exit(125);
}
static int must(int result, const char *what) {
  if (result < 0) fail(what);
  return result;
}

/* RAM below the gap for 32-bit devices, and the rest above 4 GiB. */
static uint64_t low_size(void) { return ram_size < GAP_START ? ram_size : GAP_START; }

static void make_ram(uint64_t size) {
  ram_size = size;
  int fd = must(memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
  must(ftruncate(fd, size), "ftruncate");
  must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "seals");
  ram = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (ram == MAP_FAILED) fail("mmap");
  struct kvm_userspace_memory_region low = {.slot = 0, .memory_size = low_size(), .userspace_addr = (uint64_t)ram};
  must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &low), "memory slot");
  if (size == low.memory_size) return;
  struct kvm_userspace_memory_region high = {.slot = 1, .guest_phys_addr = FOUR_GIB, .memory_size = size - low.memory_size,
                                             .userspace_addr = (uint64_t)ram + low.memory_size};
  must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &high), "memory slot above 4 GiB");
}

/* Copies the segments; returns the Linux entry, and the PVH entry if the image has one. */
static uint64_t load(const char *path, uint32_t *pvh) {
  int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
  struct stat st;
  must(fstat(fd, &st), path);
  uint8_t *file = mmap(0, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (file == MAP_FAILED) fail(path);
  Elf64_Ehdr *e = (void *)file;
  if ((uint64_t)st.st_size < sizeof *e || memcmp(e->e_ident, ELFMAG, SELFMAG) || e->e_phoff + e->e_phnum * sizeof(Elf64_Phdr) > (uint64_t)st.st_size)
    fprintf(stderr, "floor: %s is no ELF64 image\n", path), _exit(125);
  Elf64_Phdr *p = (void *)(file + e->e_phoff);
  for (int i = 0; i < e->e_phnum; i++, p++) {
    if (p->p_offset + p->p_filesz > (uint64_t)st.st_size || (p->p_type == PT_LOAD && p->p_paddr + p->p_memsz > low_size()))
      fprintf(stderr, "floor: segment %d does not fit\n", i), _exit(125);
    if (p->p_type == PT_LOAD) memcpy(ram + p->p_paddr, file + p->p_offset, p->p_filesz);
    if (p->p_type == PT_NOTE && p->p_filesz >= 20 && ((uint32_t *)(file + p->p_offset))[2] == 18)
      *pvh = ((uint32_t *)(file + p->p_offset))[4];
  }
  return e->e_entry;
}

static int map_ram(struct map_entry *m) {
  m[0] = (struct map_entry){0, 0xA0000, 1, 0};
  m[1] = (struct map_entry){0x100000, low_size() - 0x100000, 1, 0};
  m[2] = (struct map_entry){FOUR_GIB, ram_size - low_size(), 1, 0};
  return m[2].size ? 3 : 2;
}

static struct kvm_segment segment(int selector, int type, int is_64) {
  return (struct kvm_segment){.limit = 0xFFFFFFFF, .selector = selector, .present = 1, .type = type, .s = 1, .l = is_64, .db = !is_64, .g = 1};
}

static void set_registers(struct kvm_sregs *s, struct kvm_regs *r) {
  must(ioctl(vcpu, KVM_SET_SREGS, s), "KVM_SET_SREGS");
  must(ioctl(vcpu, KVM_SET_REGS, r), "KVM_SET_REGS");
}

/* 32-bit protected mode without paging, ebx = start_info. */
static void enter_pvh(struct kvm_sregs *s, uint32_t entry) {
  int n = map_ram((void *)(ram + MAP));
  *(struct start_info *)(ram + INFO) = (struct start_info){.magic = 0x336ec578, .version = 1, .cmdline = CMDLINE, .map = MAP, .entries = n};
  s->cs = segment(0x08, 11, 0);
  s->ds = s->es = s->fs = s->gs = s->ss = segment(0x10, 3, 0);
  s->cr0 = 0x11, s->cr4 = 0, s->efer = 0;
  struct kvm_regs r = {.rflags = 2, .rip = entry, .rbx = INFO};
  set_registers(s, &r);
}

/* Long mode with the first GiB mapped, rsi = boot_params. */
static void enter_linux(struct kvm_sregs *s, uint64_t entry) {
  uint8_t *zero = ram + BOOT_PARAMS;
  struct map_entry m[3];
  struct e820_entry *e820 = (void *)(zero + 0x2d0);
  zero[0x1e8] = map_ram(m);
  for (int i = 0; i < zero[0x1e8]; i++) e820[i] = (struct e820_entry){m[i].address, m[i].size, m[i].type};
  *(uint32_t *)(zero + 0x228) = CMDLINE;
  uint64_t *tables = (void *)(ram + PML4);
  tables[0] = PML4 + 0x1003, tables[512] = PML4 + 0x2003;
  for (uint64_t i = 0; i < 512; i++) tables[1024 + i] = i << 21 | 0x83;
  s->cs = segment(0x10, 11, 1);
  s->ds = s->es = s->fs = s->gs = s->ss = segment(0x18, 3, 0);
  s->cr3 = PML4, s->cr4 = 0x20, s->cr0 = 0x80010033, s->efer = 0x500;
  struct kvm_regs r = {.rflags = 2, .rip = entry, .rsi = BOOT_PARAMS, .rsp = 0x8ff0};
  set_registers(s, &r);
}

static void stats(uint64_t exits) {
  if (!getenv("FLOOR_STATS")) return;
  uint64_t pages = ram_size / 4096, touched = 0;
  uint8_t *map = malloc(pages);
  if (!map || mincore(ram, ram_size, map)) fail("mincore");
  for (uint64_t i = 0; i < pages; i++) touched += map[i] & 1;
  fprintf(stderr, "floor: %lu exits, %lu pages touched\n", exits, touched);
}

static void report(struct kvm_run *run) {
  struct kvm_regs r;
  must(ioctl(vcpu, KVM_GET_REGS, &r), "KVM_GET_REGS");
  fprintf(stderr, "floor: exit %u at rip %#llx rsp %#llx rax %#llx", run->exit_reason, r.rip, r.rsp, r.rax);
  if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
    fprintf(stderr, " internal error %u:", run->internal.suberror);
    for (unsigned i = 0; i < run->internal.ndata && i < 16; i++) fprintf(stderr, " %llx", run->internal.data[i]);
  }
  if (run->exit_reason == KVM_EXIT_MMIO) fprintf(stderr, " mmio %#llx", run->mmio.phys_addr);
  if (run->exit_reason == KVM_EXIT_IO) fprintf(stderr, " port %#x width %u", run->io.port, run->io.size);
  fputc('\n', stderr);
}

int main(int argc, char **argv) {
  if (argc < 2) fprintf(stderr, "usage: floor IMAGE.elf [MEMORY_MIB] [CMDLINE]\n"), _exit(125);
  const char *cmdline = argc > 3 ? argv[3] : "";
  if (strlen(cmdline) >= CMDLINE_MAX) fprintf(stderr, "floor: command line too long\n"), _exit(125);
  kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
  vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
  make_ram((argc > 2 ? strtoull(argv[2], 0, 10) : 128) << 20);
  struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
  must(ioctl(vm, KVM_ENABLE_CAP, &split), "split irqchip");
  vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
  struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid = {.head = {.nent = 256}};
  must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
  must(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
  uint32_t pvh = 0;
  uint64_t entry = load(argv[1], &pvh);
  memcpy(ram + CMDLINE, cmdline, strlen(cmdline) + 1);
  struct kvm_sregs s;
  must(ioctl(vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
  if (getenv("FLOOR_PVH") && pvh) enter_pvh(&s, pvh);
  else enter_linux(&s, entry);
  struct kvm_run *run = mmap(0, must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "vcpu size"), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  if (run == MAP_FAILED) fail("mmap of kvm_run");
  for (uint64_t exits = 1;; exits++) {
    must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    if (run->exit_reason != KVM_EXIT_IO) return report(run), 125;
    if (run->io.direction == KVM_EXIT_IO_IN) memset(data, run->io.port == SERIAL + 5 ? 0x60 : 0xFF, run->io.size * run->io.count);
    else if (run->io.port == SERIAL) must(write(1, data, run->io.size * run->io.count), "write");
    else if (run->io.port == EXIT && run->io.size == 4) return stats(exits), *(uint32_t *)data > 255 ? 255 : *(uint32_t *)data;
    else if (run->io.port == I8042 && *data == 0xFE) return stats(exits), 0;
    else if (run->io.port != READY) return report(run), 125;
  }
}
