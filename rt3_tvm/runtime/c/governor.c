/* `auto`: which level a clock asks for. No clock is read here, of either kind: what it decides depends on its
 * arguments.
 *
 * Down to a sparser level at once, because a deadline is at stake. Up to a denser one only after the dwell time, and
 * where the clock is not just about to leave it again: at the operating point that the level is for, with some
 * frequency to spare, or when it has stayed that high for a dwell time. So a clock that flutters does not make the
 * level flutter, and one that comes back to where it was finds its level. Two missed deadlines in a row cost one level
 * until the next rise.
 */
#include <math.h>

#include "rt3_internal.h"

#define RT3_MISSES_PER_STEP 2
#define RT3_NEVER (-INFINITY)

int32_t rt3_level_for(rt3_level_table table, double hz, bool *below) {
  for (int32_t i = 0; i < table.count; ++i) {
    if (table.levels[i].frequency_hz <= hz) {
      *below = false;
      return i;
    }
  }
  *below = true;
  return table.count - 1;
}

static double or_default(double given, double normal) { return given == 0 ? normal : given; }

void rt3_governor_start(rt3_governor *governor, const rt3_auto_options *options, rt3_level_table table, double now) {
  *governor = (rt3_governor){
      .table = table,
      .dwell_s = or_default(options->dwell_s, 0.1),
      .poll_s = or_default(options->poll_s, 0.01),
      .hysteresis = or_default(options->hysteresis, 0.02),
      .last_poll = now,
      .last_rise = now,
      .high_since = RT3_NEVER,
  };
}

bool rt3_governor_polls(const rt3_governor *governor, double now) {
  return now - governor->last_poll >= governor->poll_s;
}

/* Whether a clock that allows `level` is sure to do so for a while. */
static bool is_settled(const rt3_governor *governor, int32_t level, double hz, double now) {
  const double frequency = governor->table.levels[level].frequency_hz;
  return hz - frequency < RT3_CLOCK_STEP_HZ || hz >= frequency * (1.0 + governor->hysteresis) ||
         now - governor->high_since >= governor->dwell_s;
}

static int32_t follow_clock(rt3_governor *governor, int32_t current, double hz, double now) {
  bool below = false;
  int32_t level = rt3_level_for(governor->table, hz, &below);
  const bool rested = now - governor->last_rise >= governor->dwell_s;
  const bool held = governor->extra > 0; /* the rise is that from the level of missed deadlines */
  if (rested) governor->extra = 0;
  if (level >= current) {
    governor->high_since = RT3_NEVER;
    return level;
  }
  if (governor->high_since == RT3_NEVER) governor->high_since = now;
  if (!rested || held) return current;
  while (level < current && !is_settled(governor, level, hz, now)) ++level;
  return level;
}

int32_t rt3_governor_choose(rt3_governor *governor, int32_t current, double hz, double now) {
  int32_t wanted = current;
  if (hz > 0) {
    governor->last_poll = now;
    wanted = follow_clock(governor, current, hz, now);
  }
  if (governor->missed >= RT3_MISSES_PER_STEP) {
    governor->missed = 0;
    governor->extra = 1;
    governor->last_rise = now;
    if (wanted < governor->table.count - 1) ++wanted;
  }
  if (wanted < current) {
    governor->last_rise = now;
    governor->high_since = RT3_NEVER;
  }
  return wanted;
}

void rt3_governor_finish(rt3_governor *governor, int32_t level, double seconds) {
  const double deadline = governor->table.levels[level].deadline_s;
  governor->missed = deadline > 0 && seconds > deadline ? governor->missed + 1 : 0;
}
