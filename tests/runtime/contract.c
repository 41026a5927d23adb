/* Every function of rt3.h with bad arguments, and the promises of the header. Exit code 0 when all hold. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rt3.h"

static int failures = 0;

#define EXPECT(condition)                                                                    \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, rt3_last_error()); \
      ++failures;                                                                            \
    }                                                                                        \
  } while (0)

static int64_t tokens[4096];
static float values[1 << 20];

static rt3_tensor input(int64_t batch, int64_t length) {
  rt3_tensor t = {"input_ids", RT3_INT64, 2, {batch, length, 0, 0}, tokens, sizeof tokens};
  return t;
}

static void check_null(void) {
  rt3_level_info level;
  rt3_tensor_info info;
  EXPECT(rt3_open(NULL) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_level(NULL, 0, &level) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_set_level(NULL, 0) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_set_frequency(NULL, 1e9) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_set_auto(NULL, NULL) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_current_level(NULL) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_input(NULL, 0, &info) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_output(NULL, 0, &info) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_run(NULL, NULL, 0, NULL, 0) == RT3_ERROR_ARGUMENT);
  rt3_close(NULL);
}

static void check_levels(rt3_model *model) {
  const int32_t count = rt3_level_count(model);
  rt3_level_info info, last;
  EXPECT(rt3_level(model, count, &info) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_set_level(model, -1) == RT3_ERROR_ARGUMENT);
  EXPECT(strstr(rt3_last_error(), "choose 0 to") != NULL);
  EXPECT(rt3_set_frequency(model, 0.0) == RT3_ERROR_ARGUMENT);
  for (int32_t i = 0; i < count; ++i) {
    EXPECT(rt3_level(model, i, &info) == RT3_OK);
    EXPECT(rt3_set_frequency(model, info.frequency_hz) == RT3_OK && rt3_current_level(model) == i);
    EXPECT(rt3_set_frequency(model, info.frequency_hz * 1.001) == RT3_OK && rt3_current_level(model) == i);
  }
  EXPECT(rt3_level(model, count - 1, &last) == RT3_OK);
  EXPECT(rt3_set_frequency(model, last.frequency_hz * 0.99) == RT3_BELOW_RANGE);
  EXPECT(rt3_current_level(model) == count - 1);
  EXPECT(rt3_set_level(model, 0) == RT3_OK);
}

static void check_run(rt3_model *model) {
  rt3_tensor in = input(1, 5), out = {"last_hidden_state", RT3_FLOAT32, 0, {0}, values, sizeof values};
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_OK);
  EXPECT(out.rank == 3 && out.shape[0] == 1 && out.shape[1] == 5);
  EXPECT(rt3_run(model, NULL, 0, &out, 1) == RT3_ERROR_ARGUMENT);
  in = input(1, rt3_max_length(model) + 1);
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_ERROR_ARGUMENT);
  in = input(rt3_max_batch(model) + 1, 5);
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_ERROR_ARGUMENT);
  in = input(1, 5);
  in.rank = 1;
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_ERROR_ARGUMENT);
  in = input(1, 5);
  in.dtype = RT3_FLOAT32;
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_ERROR_ARGUMENT);
  in = input(1, 5);
  in.name = "inputs";
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_ERROR_ARGUMENT);
  in = input(1, 5);
  tokens[3] = -1;
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_ERROR_ARGUMENT);
  EXPECT(strstr(rt3_last_error(), "position 3") != NULL);
  tokens[3] = 1 << 30;
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_ERROR_ARGUMENT);
  tokens[3] = 0;
  out.bytes = 4;
  EXPECT(rt3_run(model, &in, 1, &out, 1) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_run(model, &in, 1, NULL, 0) == RT3_OK);
  double seconds[256];
  int32_t steps = 1;
  EXPECT(rt3_profile(model, &in, 1, NULL, 0, seconds, &steps) == RT3_ERROR_ARGUMENT && steps > 1);
  EXPECT(rt3_profile(model, &in, 1, NULL, 0, seconds, &steps) == RT3_OK && seconds[steps - 1] >= 0.0);
  EXPECT(rt3_profile(model, &in, 1, NULL, 0, NULL, &steps) == RT3_ERROR_ARGUMENT);
}

static void check_threads(rt3_model *model) {
  const int32_t most = rt3_max_threads(model);
  EXPECT(most >= 1 && rt3_threads(model) >= 1 && rt3_threads(model) <= most);
  EXPECT(rt3_set_threads(model, 0) == RT3_ERROR_ARGUMENT);
  EXPECT(rt3_set_threads(model, most + 1) == RT3_ERROR_ARGUMENT);
  EXPECT(strstr(rt3_last_error(), "compiled for 1 to") != NULL);
  EXPECT(rt3_set_threads(NULL, 1) == RT3_ERROR_ARGUMENT && rt3_threads(NULL) < 0);
  for (int32_t n = most; n >= 1; --n) {
    EXPECT(rt3_set_threads(model, n) == RT3_OK && rt3_threads(model) == n);
    rt3_tensor in = input(1, 5);
    EXPECT(rt3_run(model, &in, 1, NULL, 0) == RT3_OK);
  }
}

static void check_auto(rt3_model *model) {
  rt3_auto_options options;
  memset(&options, 0, sizeof options);
  options.sysfs_root = "/nonexistent";
  EXPECT(rt3_set_auto(model, &options) == RT3_ERROR_SYSTEM);
  double *const fields[] = {&options.dwell_s, &options.poll_s, &options.hysteresis};
  const double wrong[] = {-1.0, NAN, INFINITY, -INFINITY};
  for (int i = 0; i < 12; ++i) {
    *fields[i / 4] = wrong[i % 4];
    EXPECT(rt3_set_auto(model, &options) == RT3_ERROR_ARGUMENT);
    *fields[i / 4] = 0.0;
  }
  for (int i = 0; i < 4; ++i) EXPECT(rt3_set_frequency(model, wrong[i]) == RT3_ERROR_ARGUMENT);
  options.policy = -1;
  EXPECT(rt3_set_auto(model, &options) == RT3_ERROR_ARGUMENT);
}

int main(void) {
  rt3_model *model = NULL, *other = NULL;
  check_null();
  EXPECT(rt3_open(&model) == RT3_OK && rt3_open(&other) == RT3_OK);
  if (model == NULL || other == NULL) return 1;
  check_levels(model);
  EXPECT(rt3_set_level(other, 1) == RT3_OK && rt3_current_level(model) == 0);
  check_run(model);
  check_threads(model);
  check_auto(model);
  EXPECT(rt3_metadata()[0] == '{');
  rt3_close(other);
  rt3_close(model);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
