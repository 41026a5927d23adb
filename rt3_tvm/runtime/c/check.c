/* Whether what was loaded is what was linked: the checksums of the bundle's sections. */
#include <string.h>

#include "rt3_internal.h"

#define SLICES 16

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checksum reads words as the bytes come");

/* CRC-32 as zlib computes it, sixteen bytes at a time: tables[s][b] is the remainder of b followed by s zero bytes. */
typedef struct {
  uint32_t tables[SLICES][256];
} crc_tables;

static void fill_tables(crc_tables *crc) {
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int32_t bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? 0xEDB88320u : 0);
    crc->tables[0][byte] = remainder;
  }
  for (int32_t slice = 1; slice < SLICES; ++slice)
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = crc->tables[slice - 1][byte];
      crc->tables[slice][byte] = before >> 8 ^ crc->tables[0][before & 255];
    }
}

/* The part of the remainder that four bytes leave, the last of which has `behind` bytes behind it in the block. */
static inline uint32_t word(const crc_tables *crc, uint32_t bytes, int32_t behind) {
  const uint32_t (*t)[256] = crc->tables + behind;
  return t[3][bytes & 255] ^ t[2][bytes >> 8 & 255] ^ t[1][bytes >> 16 & 255] ^ t[0][bytes >> 24];
}

/* Reads whole sections, also what AddressSanitizer puts between variables. */
__attribute__((no_sanitize_address)) static uint32_t checksum(const crc_tables *crc, const unsigned char *data,
                                                              uint64_t size) {
  uint32_t value = UINT32_MAX;
  for (; size >= SLICES; data += SLICES, size -= SLICES) {
    uint32_t words[SLICES / 4];
    memcpy(words, data, sizeof words);
    value = word(crc, words[0] ^ value, 12) ^ word(crc, words[1], 8) ^ word(crc, words[2], 4) ^ word(crc, words[3], 0);
  }
  for (; size > 0; ++data, --size) value = value >> 8 ^ crc->tables[0][(value ^ *data) & 255];
  return ~value;
}

rt3_status rt3_check(void) {
  crc_tables crc;
  fill_tables(&crc);
  const rt3_checksum_table *table = &rt3_checksums;
  const unsigned char *bytes = (const unsigned char *)table;
  const size_t head = offsetof(rt3_checksum_table, count), rows = offsetof(rt3_checksum_table, rows);
  if (table->count == 0 || table->count > RT3_MAX_SECTIONS ||
      checksum(&crc, bytes + head, rows - head + table->count * sizeof *table->rows) != table->crc)
    return rt3_fail(RT3_ERROR_BUNDLE, "the bundle is damaged: the checksum of its checksums differs");
  for (uint32_t i = 0; i < table->count; ++i) {
    const rt3_checksum *row = &table->rows[i];
    const unsigned char *data = bytes + (intptr_t)(row->address - table->address);
    if (row->same_in_memory && checksum(&crc, data, row->size) != row->crc)
      return rt3_fail(RT3_ERROR_BUNDLE, "the bundle is damaged: the checksum of its section %.23s differs", row->name);
  }
  return RT3_OK;
}
