/* The clock as Linux's cpufreq tells it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "rt3_internal.h"

rt3_status rt3_cpufreq_start(const rt3_auto_options *options, char *path, size_t size, double *hz) {
  const char *root = options->sysfs_root != NULL ? options->sysfs_root : "/sys";
  const int length =
      snprintf(path, size, "%s/devices/system/cpu/cpufreq/policy%d/scaling_cur_freq", root, (int)options->policy);
  if (length < 0 || (size_t)length >= size) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_auto: sysfs root is too long");
  return rt3_cpufreq_read(path, hz)
             ? RT3_OK
             : rt3_fail(RT3_ERROR_SYSTEM, "rt3_set_auto: cannot read %s: %s", path, strerror(errno));
}

bool rt3_cpufreq_read(const char *path, double *hz) {
  FILE *file = fopen(path, "r");
  if (file == NULL) return false;
  long khz = 0;
  errno = EINVAL; /* what a file without a number is, where the C library does not say more */
  const bool read = fscanf(file, "%ld", &khz) == 1 && khz > 0;
  fclose(file);
  *hz = RT3_CLOCK_STEP_HZ * (double)khz + (RT3_CLOCK_STEP_HZ - 1.0);
  return read;
}
