/* How long a level switch takes, and whether the call after it takes as long as any other of its level.
 *
 * Prints JSON: nanoseconds of rt3_set_frequency and rt3_set_level over 1e6 calls (median, p99, worst; the clock's own
 * cost is in them and given beside), and for each level the median milliseconds of the call after a switch and of a
 * later one.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "rt3.h"

#define CALLS 1000000
#define ROUNDS 31

static double samples[CALLS];
static int64_t tokens[4096];
static float values[1 << 22];

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void report(const char *name) {
  qsort(samples, CALLS, sizeof samples[0], ascending);
  printf("\"%s\": {\"median_ns\": %.0f, \"p99_ns\": %.0f, \"worst_ns\": %.0f}, ", name, samples[CALLS / 2],
         samples[CALLS / 100 * 99], samples[CALLS - 1]);
}

static double time_run(rt3_model *model) {
  rt3_tensor in = {"input_ids", RT3_INT64, 2, {1, rt3_max_length(model), 0, 0}, tokens, sizeof tokens};
  rt3_tensor out = {"last_hidden_state", RT3_FLOAT32, 0, {0}, values, sizeof values};
  const double start = now_ns();
  if (rt3_run(model, &in, 1, &out, 1) != RT3_OK) {
    fprintf(stderr, "switch: %s\n", rt3_last_error());
    exit(1);
  }
  return (now_ns() - start) / 1e6;
}

int main(void) {
  rt3_model *model = NULL;
  if (rt3_open(&model) != RT3_OK) return 1;
  const int32_t levels = rt3_level_count(model);
  printf("{\"calls\": %d, ", CALLS);
  for (int i = 0; i < CALLS; ++i) {
    const double start = now_ns();
    samples[i] = now_ns() - start;
  }
  report("clock");
  for (int i = 0; i < CALLS; ++i) {
    rt3_level_info info;
    rt3_level(model, i % levels, &info);
    const double start = now_ns();
    rt3_set_frequency(model, info.frequency_hz);
    samples[i] = now_ns() - start;
  }
  report("set_frequency");
  for (int i = 0; i < CALLS; ++i) {
    const double start = now_ns();
    rt3_set_level(model, i % levels);
    samples[i] = now_ns() - start;
  }
  report("set_level");
  printf("\"levels\": [");
  for (int32_t level = 0; level < levels; ++level) {
    static double first[ROUNDS], later[ROUNDS];
    for (int round = 0; round < ROUNDS; ++round) {
      rt3_set_level(model, (level + 1) % levels);
      time_run(model);
      rt3_set_level(model, level);
      first[round] = time_run(model);
      later[round] = time_run(model);
    }
    qsort(first, ROUNDS, sizeof first[0], ascending);
    qsort(later, ROUNDS, sizeof later[0], ascending);
    printf("%s{\"level\": %d, \"after_switch_ms\": %.3f, \"later_ms\": %.3f}", level ? ", " : "", (int)level,
           first[ROUNDS / 2], later[ROUNDS / 2]);
  }
  printf("]}\n");
  rt3_close(model);
  return 0;
}
