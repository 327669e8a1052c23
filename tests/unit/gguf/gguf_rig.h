/* What the tests of the GGUF parser have in common: files that are built in memory, one field after another, and a case
 * for each fault. A case marks the field that the parser has to blame. Uses cmocka. */
#pragma once

#include "daemon/gguf/gguf.h"

#define NO_FAULT UINT64_MAX

enum { F32 = 0, F16 = 1, Q4_0 = 2, REMOVED = 4, Q8_1 = 9, Q4_K = 12, Q8_K = 15, I8 = 24, UNKNOWN = 43 };

struct file {
    uint8_t bytes[1 << 18];
    size_t size;
    uint64_t fault; /* of the field to blame */
};

/* --- building --- */

void put(struct file *f, const void *bytes, size_t size);
void put_u8(struct file *f, uint8_t value);
void put_u32(struct file *f, uint32_t value);
void put_u64(struct file *f, uint64_t value);
void put_bytes(struct file *f, const char *text, size_t size);
void put_string(struct file *f, const char *text);
void put_zeros(struct file *f, size_t size);
/* The next field is the faulty one. */
void mark(struct file *f);
void put_header(struct file *f, uint32_t version, uint64_t n_tensors, uint64_t n_kv);
void put_key(struct file *f, const char *key, uint32_t type);
void put_info(struct file *f, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset);
void put_padding(struct file *f, size_t alignment);
void put_alignment(struct file *f, uint32_t value);

/* --- reading --- */

/* A memfd with these contents. */
int memfd(const void *bytes, size_t size);

/* gguf_read() of such a file. */
int parse_bytes(const void *bytes, size_t size, struct model_header **ret, struct header_fault *ret_fault);

/* A file that has to be taken. */
struct model_header *parse(const struct file *f);

/* --- cases --- */

struct row {
    const char *name;
    void (*build)(struct file *f);
    const char *reason; /* a part of it; NULL: the file is taken */
};

/* Makes a test of each. */
struct CMUnitTest;
void rows_tests(const struct row *rows, size_t n, struct CMUnitTest *ret);
