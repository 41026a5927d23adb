/* The governor on clocks of this file's making: every pair of levels of several tables, and clocks that flutter. Exit
 * code 0 when all is as it should be. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rt3_internal.h"

#define COUNT(array) ((int32_t)(sizeof(array) / sizeof *(array)))

static const double DWELL = 1.0, POLL = 0.1;
static int failures = 0;

#define EXPECT(condition, ...)                                        \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      fprintf(stderr, __VA_ARGS__);                                   \
      fputc('\n', stderr);                                            \
      ++failures;                                                     \
    }                                                                 \
  } while (0)

typedef struct {
  rt3_governor governor;
  int32_t level;
  double now;
} follower;

static follower follow(rt3_level_table table) {
  follower f;
  const rt3_auto_options options = {NULL, 0, DWELL, POLL, 0.02};
  rt3_governor_start(&f.governor, &options, table, 0.0);
  f.level = 0;
  f.now = 0.0;
  return f;
}

/* What cpufreq makes of a clock, as rt3_cpufreq_read returns it. */
static double read_of(double hz) { return 1e3 * (double)(int64_t)(hz / 1e3) + 999.0; }

static void clock_for(follower *f, double hz, double seconds) {
  for (const double end = f->now + seconds; f->now < end; f->now += POLL)
    f->level = rt3_governor_choose(&f->governor, f->level, read_of(hz), f->now);
}

static int32_t densest(rt3_level_table table, double hz) {
  for (int32_t i = 0; i < table.count; ++i)
    if (table.levels[i].frequency_hz <= hz) return i;
  return table.count - 1;
}

static void check_pairs(const char *name, rt3_level_table table) {
  for (int32_t a = 0; a < table.count; ++a) {
    for (int32_t b = 0; b < table.count; ++b) {
      follower f = follow(table);
      const int32_t path[] = {a, b, a, b};
      for (int32_t i = 0; i < COUNT(path); ++i) {
        clock_for(&f, table.levels[path[i]].frequency_hz, 1.5 * DWELL);
        EXPECT(f.level == path[i], "%s: %d -> %d, stop %d: level %d", name, (int)a, (int)b, (int)i, (int)f.level);
      }
    }
  }
}

/* Operating points that the levels were rounded from lie close above or below: a clock that stays there is followed. */
static void check_neighbours(const char *name, rt3_level_table table) {
  for (int32_t a = 0; a < table.count; ++a) {
    for (double factor = 0.985; factor < 1.03; factor += 0.005) {
      const double hz = table.levels[a].frequency_hz * factor;
      for (int32_t from = 0; from < table.count; ++from) {
        follower f = follow(table);
        clock_for(&f, table.levels[from].frequency_hz, 1.5 * DWELL);
        clock_for(&f, hz, 2.5 * DWELL);
        EXPECT(f.level == densest(table, hz), "%s: %g Hz from level %d: level %d", name, hz, (int)from, (int)f.level);
      }
    }
  }
}

/* Around the frequency of level 0, half a per cent up and down: the level stays. From one operating point to another:
 * it may follow, once a dwell time. */
static void check_flutter(const char *name, rt3_level_table table) {
  const double hz = table.levels[0].frequency_hz;
  follower f = follow(table);
  clock_for(&f, hz * 0.995, 0.2 * DWELL);
  int32_t rises = 0;
  for (int32_t i = 0; i < 1000; ++i) {
    const int32_t before = f.level;
    clock_for(&f, i % 2 == 0 ? hz * 1.005 : hz * 0.995, POLL / 2);
    rises += f.level < before;
  }
  EXPECT(rises == 0, "%s: %d rises", name, (int)rises);
  const double start = f.now;
  for (int32_t i = 0; i < 1000; ++i) {
    const int32_t before = f.level;
    clock_for(&f, i % 2 == 0 ? hz : table.levels[1].frequency_hz, POLL / 2);
    rises += f.level < before;
  }
  EXPECT(rises > 0 && rises <= (f.now - start) / DWELL + 1, "%s: %d rises in %g s", name, (int)rises, f.now - start);
}

/* Two misses cost a level, and the clock alone does not bring it back before the dwell time. */
static void check_misses(rt3_level_table table) {
  follower f = follow(table);
  clock_for(&f, table.levels[0].frequency_hz, DWELL);
  for (int32_t i = 0; i < 2; ++i) rt3_governor_finish(&f.governor, f.level, 1e9);
  clock_for(&f, table.levels[0].frequency_hz, POLL / 2);
  EXPECT(f.level == 1, "after two misses: level %d", (int)f.level);
  clock_for(&f, table.levels[0].frequency_hz, 0.5 * DWELL);
  EXPECT(f.level == 1, "before the dwell time: level %d", (int)f.level);
  clock_for(&f, table.levels[0].frequency_hz, DWELL);
  EXPECT(f.level == 0, "after the dwell time: level %d", (int)f.level);
}

int main(void) {
  static const double tables[][5] = {
      {1.4e9, 1.0e9, 0.8e9},                          /* RT3 */
      {2.4e9, 2.3e9, 2.2e9, 2.1e9, 1.5e9},            /* Raspberry Pi 5 */
      {1401.6e6, 1296e6, 1094.4e6, 998.4e6, 796.8e6}, /* a phone */
      {1386666667.0, 1333333333.0, 1e9, 666666667.0}, /* no whole kHz */
      {1.01e9, 1.005e9, 1e9, 0.995e9},                /* closer than the hysteresis */
  };
  for (int32_t t = 0; t < COUNT(tables); ++t) {
    rt3_level_info levels[5];
    rt3_level_table table = {levels, 0};
    while (table.count < 5 && tables[t][table.count] > 0) {
      levels[table.count] = (rt3_level_info){tables[t][table.count], 10.0, 0.5};
      ++table.count;
    }
    char name[24];
    snprintf(name, sizeof name, "table %d", (int)t);
    check_pairs(name, table);
    if (t < 4) {
      check_neighbours(name, table);
      check_flutter(name, table);
    }
    check_misses(table);
  }
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
