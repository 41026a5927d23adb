/* The features of this CPU, against those that the kernels were compiled for. */
#include <stdio.h>
#include <string.h>

#include "rt3_internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

enum { CPUID_OSXSAVE = 27 };

static uint64_t cpuid_word(uint32_t leaf, uint32_t subleaf, int32_t index) {
  uint32_t registers[4] = {0, 0, 0, 0}; /* eax, ebx, ecx, edx */
  if (!__get_cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3])) return 0;
  return registers[index];
}

/* The registers that the system saves; it has not said so where xgetbv does not exist. */
static uint64_t saved_registers(void) {
  if ((cpuid_word(1, 0, 2) >> CPUID_OSXSAVE & 1) == 0) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low | (uint64_t)high << 32;
}

static uint64_t cpu_word(rt3_cpu_word word) {
  switch (word) {
    case RT3_CPUID_1_ECX:
      return cpuid_word(1, 0, 2);
    case RT3_CPUID_7_EBX:
      return cpuid_word(7, 0, 1);
    case RT3_CPUID_7_ECX:
      return cpuid_word(7, 0, 2);
    case RT3_CPUID_7_EDX:
      return cpuid_word(7, 0, 3);
    case RT3_CPUID_7_1_EAX:
      return cpuid_word(7, 1, 0);
    case RT3_CPUID_7_1_EDX:
      return cpuid_word(7, 1, 3);
    case RT3_CPUID_EXTENDED_ECX:
      return cpuid_word(0x80000001u, 0, 2);
    case RT3_XCR0:
      return saved_registers();
    default:
      return 0;
  }
}

#elif defined(__linux__)
#include <sys/auxv.h>

static uint64_t cpu_word(rt3_cpu_word word) {
  return word == RT3_HWCAP ? getauxval(AT_HWCAP) : word == RT3_HWCAP2 ? getauxval(AT_HWCAP2) : 0;
}

#else

static uint64_t cpu_word(rt3_cpu_word word) {
  (void)word;
  return 0; /* no way to ask is no feature */
}

#endif

rt3_status rt3_check_cpu(const rt3_cpu_feature *features) {
  char missing[160] = "";
  size_t used = 0;
  const char *last = "";
  for (const rt3_cpu_feature *f = features; f->name != NULL; ++f) {
    if ((cpu_word(f->word) >> f->bit & 1) != 0 || strcmp(f->name, last) == 0) continue;
    last = f->name;
    const int length = snprintf(missing + used, sizeof missing - used, "%s%s", used > 0 ? ", " : "", f->name);
    if (length < 0 || (size_t)length >= sizeof missing - used) break; /* the first ones say enough */
    used += (size_t)length;
  }
  if (used == 0) return RT3_OK;
  return rt3_fail(RT3_ERROR_CPU, "this CPU lacks %s, which the bundle was compiled for: compile it for this CPU",
                  missing);
}
