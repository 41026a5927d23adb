/* `auto`: the level follows the cpufreq policy.
 *
 * Down to a sparser level at once, because a deadline is at stake; up to a denser one only after the dwell time and
 * with some frequency to spare, so that a clock that flutters does not make the level flutter. Two missed deadlines in
 * a row cost one level until the next rise.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "rt3_internal.h"

#define RT3_MISSES_PER_STEP 2

static bool read_frequency(const char *path, double *hz) {
  FILE *file = fopen(path, "r");
  if (file == NULL) return false;
  unsigned long khz = 0;
  const bool read = fscanf(file, "%lu", &khz) == 1 && khz > 0;
  fclose(file);
  *hz = 1e3 * (double)khz;
  return read;
}

rt3_status rt3_governor_start(rt3_governor *governor, const rt3_auto_options *options, int32_t *level) {
  rt3_governor started;
  memset(&started, 0, sizeof started);
  if (options != NULL) started.options = *options;
  rt3_auto_options *o = &started.options;
  if (o->dwell_s < 0 || o->poll_s < 0 || o->hysteresis < 0 || o->policy < 0)
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_auto: negative dwell, poll, hysteresis or policy");
  if (o->sysfs_root == NULL) o->sysfs_root = "/sys";
  if (o->dwell_s == 0) o->dwell_s = 0.1;
  if (o->poll_s == 0) o->poll_s = 0.01;
  if (o->hysteresis == 0) o->hysteresis = 0.02;
  const int length = snprintf(started.path, sizeof started.path,
                              "%s/devices/system/cpu/cpufreq/policy%d/scaling_cur_freq", o->sysfs_root, (int)o->policy);
  if (length < 0 || (size_t)length >= sizeof started.path)
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_auto: sysfs root is too long");
  o->sysfs_root = NULL; /* the caller's string need not outlive the call */
  double hz = 0;
  if (!read_frequency(started.path, &hz))
    return rt3_fail(RT3_ERROR_SYSTEM, "rt3_set_auto: cannot read %s: %s", started.path, strerror(errno));
  bool below = false;
  *level = rt3_level_for(hz, &below);
  started.last_poll = started.last_rise = rt3_now();
  *governor = started;
  return RT3_OK;
}

int32_t rt3_governor_choose(rt3_governor *governor, int32_t current, double now) {
  const int32_t sparsest = rt3_bundle_tables.level_count - 1;
  const bool rested = now - governor->last_rise >= governor->options.dwell_s;
  double hz = 0;
  int32_t wanted = current;
  if (now - governor->last_poll >= governor->options.poll_s && read_frequency(governor->path, &hz)) {
    governor->last_poll = now;
    bool below = false;
    const int32_t at_once = rt3_level_for(hz, &below);
    const int32_t with_room = rt3_level_for(hz / (1.0 + governor->options.hysteresis), &below);
    if (at_once > current)
      wanted = at_once;
    else if (with_room < current && rested && governor->extra == 0)
      wanted = with_room;
    else if (rested)
      governor->extra = 0;
  }
  if (governor->missed >= RT3_MISSES_PER_STEP) {
    governor->missed = 0;
    governor->extra = 1;
    governor->last_rise = now;
    wanted = wanted < sparsest ? wanted + 1 : sparsest;
  }
  if (wanted < current) governor->last_rise = now;
  return wanted;
}

void rt3_governor_finish(rt3_governor *governor, int32_t level, double seconds) {
  const double deadline = rt3_bundle_tables.levels[level].deadline_s;
  governor->missed = deadline > 0 && seconds > deadline ? governor->missed + 1 : 0;
}
