/* What went wrong, in words, for the thread to which it happened. */
#include <stdio.h>

#include "rt3_internal.h"

static _Thread_local char last_error[256];

rt3_status rt3_fail(rt3_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return status;
}

const char *rt3_last_error(void) { return last_error; }
