/* `auto` in simulated time. It asks the runtime's governor and its reader of cpufreq as rt3_set_auto, rt3_take_level
 * and rt3_run do, with a clock and a time of the caller's. */
#include <math.h>
#include <string.h>

#include "rt3_internal.h"

/* Times that are equal but for rounding count as equal: a dwell time or a poll is over this part of itself early. */
#define TIE 1e-6
/* A state is compared in steps of this many s. */
#define STEP_S 1e-8
#define STATE_WORDS 6

typedef struct {
  rt3_governor governor;
  int32_t level;
} auto_state;

size_t auto_state_bytes(void) { return sizeof(auto_state); }

/* Begins at a clock, as rt3_cpufreq_read tells it. `levels` must outlive the state. */
void auto_start(auto_state *state, const rt3_auto_options *options, const rt3_level_info *levels, int32_t count,
                double hz, double now) {
  const rt3_level_table table = {levels, count};
  bool below = false;
  rt3_governor_start(&state->governor, options, table, now);
  state->governor.dwell_s *= 1.0 - TIE;
  state->governor.poll_s *= 1.0 - TIE;
  state->level = rt3_level_for(table, hz, &below);
}

/* The level of an inference that begins now. */
int32_t auto_take(auto_state *state, double hz, double now) {
  const bool polls = rt3_governor_polls(&state->governor, now);
  state->level = rt3_governor_choose(&state->governor, state->level, polls ? hz : 0.0, now);
  return state->level;
}

void auto_finish(auto_state *state, int32_t level, double seconds) {
  rt3_governor_finish(&state->governor, level, seconds);
}

static int64_t age(double since, double now, double limit) {
  return isinf(since) ? -1 : llround(fmin(now - since, limit) / STEP_S);
}

/* What every later answer depends on while the clock stays. A time matters up to what it is compared with. */
void auto_describe(const auto_state *state, double now, int64_t words[STATE_WORDS]) {
  const rt3_governor *g = &state->governor;
  const int64_t all[STATE_WORDS] = {
      state->level,
      g->missed,
      g->extra,
      age(g->last_poll, now, g->poll_s),
      age(g->last_rise, now, g->dwell_s),
      age(g->high_since, now, g->dwell_s),
  };
  memcpy(words, all, sizeof all);
}

/* Lets time pass after which the state is what it is. */
void auto_shift(auto_state *state, double seconds) {
  state->governor.last_poll += seconds;
  state->governor.last_rise += seconds;
  state->governor.high_since += seconds;
}

/* What cpufreq tells of a clock that is written in a file; 0 where it cannot be read. */
double auto_read_clock(const char *path) {
  double hz = 0.0;
  return rt3_cpufreq_read(path, &hz) ? hz : 0.0;
}
