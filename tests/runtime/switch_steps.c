/* Counts what a level switch takes: instructions and system calls, the same on every machine of one instruction set.
 *
 * A child stops before and after the call; the parent lets it go from the one to the other instruction by instruction,
 * or from system call to system call, and subtracts what two stops with nothing between them take. Prints the most over
 * all levels as JSON. Exit code 77 where the system lets no process trace its child.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rt3.h"

#define MARK SIGUSR1
#define SKIP 77

typedef enum { NOTHING, SET_LEVEL, SET_FREQUENCY } operation;

static const char *const names[] = {"nothing", "set_level", "set_frequency"};

static void fail(const char *what) {
  fprintf(stderr, "switch_steps: %s: %s\n", what, rt3_last_error());
  exit(EXIT_FAILURE);
}

static rt3_status apply(operation what, rt3_model *model, int32_t level, double hz) {
  switch (what) {
    case SET_LEVEL:
      return rt3_set_level(model, level);
    case SET_FREQUENCY:
      return rt3_set_frequency(model, hz);
    default:
      return RT3_OK;
  }
}

static void run_child(operation what, int32_t level) {
  rt3_model *model = NULL;
  rt3_level_info info;
  if (rt3_open(&model) != RT3_OK || rt3_level(model, level, &info) != RT3_OK) fail("rt3_open");
  if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(errno == EPERM ? SKIP : EXIT_FAILURE);
  rt3_status status = apply(what, model, level, info.frequency_hz); /* the first call finds its symbol */
  raise(MARK);                                                      /* and this one that of raise */
  raise(MARK);
  if (status == RT3_OK) status = apply(what, model, level, info.frequency_hz);
  raise(MARK);
  if (what != NOTHING && rt3_current_level(model) != level) status = RT3_ERROR_SYSTEM;
  _exit(status == RT3_OK ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* Continues a stopped child up to its next mark; returns how often it stopped on the way. */
static long stops_to_mark(int request, pid_t child) {
  for (long stops = 0;; ++stops) {
    int status = 0;
    if (ptrace(request, child, NULL, NULL) != 0 || waitpid(child, &status, 0) != child) fail("ptrace");
    if (!WIFSTOPPED(status)) fail("the child ended between its marks");
    if (WSTOPSIG(status) == MARK) return stops;
  }
}

static long count(int request, operation what, int32_t level) {
  int status = 0;
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) run_child(what, level);
  if (waitpid(child, &status, 0) != child) fail("waitpid");
  if (WIFEXITED(status)) exit(WEXITSTATUS(status));
  stops_to_mark(PTRACE_CONT, child);
  const long stops = stops_to_mark(request, child);
  if (ptrace(PTRACE_CONT, child, NULL, NULL) != 0 || waitpid(child, &status, 0) != child) fail("waitpid");
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail(names[what]);
  return stops;
}

static long most(int request, operation what, int32_t levels) {
  long found = 0;
  for (int32_t level = 0; level < levels; ++level) {
    const long stops = count(request, what, level) - count(request, NOTHING, level);
    found = stops > found ? stops : found;
  }
  return found;
}

int main(void) {
  rt3_model *model = NULL;
  if (rt3_open(&model) != RT3_OK) fail("rt3_open");
  const int32_t levels = rt3_level_count(model);
  rt3_close(model);
  printf("{");
  for (operation what = SET_LEVEL; what <= SET_FREQUENCY; ++what)
    printf("%s\"%s\": {\"instructions\": %ld, \"system_calls\": %ld}", what == SET_LEVEL ? "" : ", ", names[what],
           most(PTRACE_SINGLESTEP, what, levels), most(PTRACE_SYSCALL, what, levels));
  printf("}\n");
  return EXIT_SUCCESS;
}
