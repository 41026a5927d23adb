/* The C API of an rt3 bundle: one shared library that holds every level of a pruned Transformer.
 *
 * Link the bundle, or dlopen it; each bundle brings its own copy of these functions. A handle runs one inference at a
 * time; open one per thread, weights are shared. Levels may be switched from any thread at any time: a run uses the
 * level that was set when it began.
 */
#ifndef RT3_H_
#define RT3_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header, of the tables and of the metadata: a bundle has one version. */
#define RT3_API_VERSION 3
#define RT3_MAX_RANK 4

#if defined(_WIN32)
#define RT3_API
#else
#define RT3_API __attribute__((visibility("default")))
#endif

typedef struct rt3_model rt3_model;

/* Errors are negative. RT3_BELOW_RANGE is no error: the sparsest level was taken, no deadline is guaranteed. */
typedef enum {
  RT3_OK = 0,
  RT3_BELOW_RANGE = 1,
  RT3_ERROR_ARGUMENT = -1,
  RT3_ERROR_MEMORY = -2,
  RT3_ERROR_BUSY = -3,
  RT3_ERROR_SYSTEM = -4,
  RT3_ERROR_BUNDLE = -5, /* the bundle is damaged */
  RT3_ERROR_CPU = -6     /* the kernels use what this CPU lacks */
} rt3_status;

typedef enum { RT3_FLOAT32 = 0, RT3_INT32 = 1, RT3_INT64 = 2 } rt3_dtype;

/* One level: serves frequencies from its own up to that of the next denser level. */
typedef struct {
  double frequency_hz;
  double deadline_s; /* 0: none */
  double density;    /* kept part of the pruned matrices */
} rt3_level_info;

/* A row-major tensor of the caller's. For outputs `bytes` is the capacity of `data`; dtype, rank and shape are filled
 * in. Inputs of tokens may be RT3_INT64 or RT3_INT32, inputs of numbers are RT3_FLOAT32. */
typedef struct {
  const char *name;
  rt3_dtype dtype;
  int32_t rank;
  int64_t shape[RT3_MAX_RANK];
  void *data;
  size_t bytes;
} rt3_tensor;

/* Axes of an input or output: a fixed size, or one of these. */
enum { RT3_AXIS_BATCH = -1, RT3_AXIS_LENGTH = -2 };

typedef struct {
  const char *name;
  rt3_dtype dtype;
  int32_t rank;
  int64_t axes[RT3_MAX_RANK];
  int64_t limit;    /* inputs of tokens: values must lie in [0, limit) */
  int32_t optional; /* inputs: may be left out */
} rt3_tensor_info;

/* How `auto` follows the CPU's frequency. Zero-initialised fields take the defaults.
 * A denser level is taken after the dwell time, at the operating point that it is for, with `hysteresis` to spare above
 * it, or when the clock has stayed above it for one more dwell time; a sparser one at once. */
typedef struct {
  const char *sysfs_root; /* default "/sys" */
  int32_t policy;         /* cpufreq policy number */
  double dwell_s;         /* least time between two steps to a denser level; default 0.1 */
  double poll_s;          /* least time between two reads of sysfs; default 0.01 */
  double hysteresis;      /* part of a level's frequency that is enough to spare; default 0.02 */
} rt3_auto_options;

/* Returns a handle on this bundle's model, at level 0. RT3_ERROR_BUNDLE, RT3_ERROR_CPU: this bundle does
 * not run here. */
RT3_API rt3_status rt3_open(rt3_model **model);
/* Frees a handle; NULL is ignored. */
RT3_API void rt3_close(rt3_model *model);

RT3_API int32_t rt3_level_count(const rt3_model *model);
RT3_API rt3_status rt3_level(const rt3_model *model, int32_t level, rt3_level_info *info);
RT3_API int32_t rt3_current_level(const rt3_model *model);
/* Takes a level, 0 the densest. Leaves `auto`. */
RT3_API rt3_status rt3_set_level(rt3_model *model, int32_t level);
/* Takes the densest level whose deadline holds at this frequency. Leaves `auto`. */
RT3_API rt3_status rt3_set_frequency(rt3_model *model, double hz);
/* Follows the cpufreq policy from now on, before each run. NULL takes the defaults. */
RT3_API rt3_status rt3_set_auto(rt3_model *model, const rt3_auto_options *options);

RT3_API int32_t rt3_input_count(const rt3_model *model);
RT3_API rt3_status rt3_input(const rt3_model *model, int32_t index, rt3_tensor_info *info);
RT3_API int32_t rt3_output_count(const rt3_model *model);
RT3_API rt3_status rt3_output(const rt3_model *model, int32_t index, rt3_tensor_info *info);
/* Largest batch and length that were compiled. */
RT3_API int64_t rt3_max_batch(const rt3_model *model);
RT3_API int64_t rt3_max_length(const rt3_model *model);

/* Most threads that this bundle was compiled for. */
RT3_API int32_t rt3_max_threads(const rt3_model *model);
/* Threads of a run, the caller's included. A new handle takes as many as there are cores, up to the most. */
RT3_API int32_t rt3_threads(const rt3_model *model);
RT3_API rt3_status rt3_set_threads(rt3_model *model, int32_t threads);

/* Runs the current level on the smallest compiled length that fits; shorter inputs are padded and masked. Outputs that
 * are not asked for are not copied. */
RT3_API rt3_status rt3_run(rt3_model *model, const rt3_tensor *inputs, int32_t input_count, rt3_tensor *outputs,
                           int32_t output_count);

/* rt3_run that also times each kernel call: seconds[i] is that of step i, in the order of the metadata's "steps" of the
 * variant that ran. `count` is the room in `seconds` and becomes the number of steps. */
RT3_API rt3_status rt3_profile(rt3_model *model, const rt3_tensor *inputs, int32_t input_count, rt3_tensor *outputs,
                               int32_t output_count, double *seconds, int32_t *count);

/* Compares what was loaded, weights and all, with the checksums that the bundle was linked with: about 1 ms a MB.
 * RT3_ERROR_BUNDLE: it was damaged. rt3_open does not do it. */
RT3_API rt3_status rt3_check(void);

/* What the last failed call of this thread was about; "" if none failed. */
RT3_API const char *rt3_last_error(void);
/* JSON: model, device, levels, kernels, versions. */
RT3_API const char *rt3_metadata(void);

#ifdef __cplusplus
}
#endif

#endif /* RT3_H_ */
