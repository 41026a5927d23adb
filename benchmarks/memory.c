/* Peak resident memory of a process that has run every level of a bundle. Prints JSON in bytes. */
#include <stdio.h>

#include "rt3.h"

static int64_t tokens[4096];
static float values[1 << 22];

/* VmHWM, not getrusage: ru_maxrss also counts the process that forked this one. */
static long long peak_kib(void) {
  FILE *file = fopen("/proc/self/status", "r");
  char line[128];
  long long kib = -1;
  while (file != NULL && fgets(line, sizeof line, file) != NULL) sscanf(line, "VmHWM: %lld", &kib);
  if (file != NULL) fclose(file);
  return kib;
}

int main(void) {
  rt3_model *model = NULL;
  if (rt3_open(&model) != RT3_OK) return 1;
  for (int32_t level = 0; level < rt3_level_count(model); ++level) {
    rt3_tensor in = {"input_ids", RT3_INT64, 2, {1, rt3_max_length(model), 0, 0}, tokens, sizeof tokens};
    rt3_tensor out = {"last_hidden_state", RT3_FLOAT32, 0, {0}, values, sizeof values};
    for (int64_t i = 0; i < rt3_max_length(model); ++i) tokens[i] = i * 31 % 499;
    if (rt3_set_level(model, level) != RT3_OK || rt3_run(model, &in, 1, &out, 1) != RT3_OK) {
      fprintf(stderr, "memory: %s\n", rt3_last_error());
      return 1;
    }
  }
  printf("{\"peak_rss_bytes\": %lld, \"levels\": %d}\n", peak_kib() * 1024, (int)rt3_level_count(model));
  rt3_close(model);
  return 0;
}
