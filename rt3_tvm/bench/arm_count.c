/* A plugin of qemu-user that counts how often each block of instructions runs: `qemu-aarch64 -plugin
 * arm_count.so,out=FILE`.
 *
 * When the program ends it writes a line `ADDRESS INSTRUCTIONS COUNT` for each block that ran; a block that was
 * translated twice has two. What it calls of qemu is declared here, as qemu's manual describes it, because Debian
 * packages no header. PLUGIN_VERSION is that of the interface: 1 up to qemu 8, at least 2 from 9 on; what is used here
 * is the same in both.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define NO_REGISTERS 0

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_info;

extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*translated)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*runs)(unsigned int, void *),
                                                 int registers, void *data);
extern void qemu_plugin_register_atexit_cb(plugin_id id, void (*ends)(plugin_id, void *), void *data);

EXPORT extern const int qemu_plugin_version;
const int qemu_plugin_version = PLUGIN_VERSION;

typedef struct block {
  uint64_t address, instructions, count;
  struct block *next;
} block;

static block *blocks;
static FILE *out;

static void count_run(unsigned int cpu, void *data) {
  (void)cpu;
  ++((block *)data)->count;
}

static void count_block(plugin_id id, struct qemu_plugin_tb *translated) {
  (void)id;
  block *one = calloc(1, sizeof *one);
  if (one == NULL) abort();
  one->address = qemu_plugin_tb_vaddr(translated);
  one->instructions = qemu_plugin_tb_n_insns(translated);
  one->next = blocks;
  blocks = one;
  qemu_plugin_register_vcpu_tb_exec_cb(translated, count_run, NO_REGISTERS, one);
}

static void write_counts(plugin_id id, void *data) {
  (void)id;
  (void)data;
  for (const block *one = blocks; one != NULL; one = one->next)
    if (one->count > 0)
      fprintf(out, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", one->address, one->instructions, one->count);
  fclose(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int count, char **arguments) {
  (void)info;
  if (count != 1 || strncmp(arguments[0], "out=", 4) != 0) return -1;
  out = fopen(arguments[0] + 4, "w");
  if (out == NULL) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
  qemu_plugin_register_atexit_cb(id, write_counts, NULL);
  return 0;
}
