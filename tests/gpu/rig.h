/* A device module under test: loads it, drives it as the daemon does, and compares what arrives with the CPU's
 * decoders, bit for bit. The module is a real one, on a GPU or on tests/fake_hip. */
#pragma once

#include "daemon/device/device.h"
#include "tests/fake_hip/fake_hip.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the module runs on; NULL functions on a real GPU. */
struct rig {
    const struct device_module *module;
    void (*inject)(const char *spec);
    bool (*fired)(void);
    unsigned long (*copies_delayed)(void);
    bool (*call)(unsigned index, const char **ret_name, unsigned long *ret_calls);
    void (*count)(struct fake_hip_live *ret);
};

/* Loads the module named by ROCMFORGE_TEST_MODULE. Returns 0, or -ENOENT after it was told why. */
int rig_load(struct rig *ret);

/* Finds the functions of the fake, if that is what an object is linked with. */
void rig_find_fake(struct rig *rig, void *object);

/* How often a call was made since inject(). */
unsigned long rig_calls(const struct rig *rig, const char *name);

/* Runs `session` once as it is, and then once for every call that it made, which fails with `code`. It gets what was
 * injected, NULL the first time, and returns whether that failed. Fails the test if the object at `path` uses a call
 * that was not made to fail. */
void rig_sweep(const struct rig *rig, const char *path, const char *code, bool (*session)(const char *spec));

/* A tensor of a test's model. */
struct part {
    const struct tensor_type *type;
    enum form form; /* FORM_NATIVE: verbatim */
    uint64_t blocks;
};

/* A model: bytes as they stand in a file, and what an arena is to hold. */
struct model {
    struct piece *pieces; /* slot offsets are those in `file`, which model_put() cuts into slots */
    size_t n_pieces;
    uint8_t *file;
    uint64_t file_bytes;
    uint8_t *expected; /* gaps are 0 */
    uint64_t arena_bytes;
    uint64_t overflows;
};

/* Makes one: random bytes from `seed`; each part stands `skew` bytes off a multiple of 32 in the file. */
void model_make(struct model *ret, const struct part *parts, size_t n, unsigned skew, uint64_t seed);
void model_drop(struct model *model);

/* An arena that is all gap: cleared everywhere, for models that do not fill it. */
int arena_make(struct device *device, uint64_t bytes, struct arena **ret, struct device_fault *ret_fault);

/* The slots of a device. */
struct slots {
    struct device *device;
    struct slot *slots;
    size_t n;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct slot **free;
    size_t n_free;
};

/* Makes `n`. On failure there are none. */
int slots_make(struct slots *ret, struct device *device, size_t n, struct device_fault *ret_fault);
void slots_drop(struct slots *slots);

/* What came of putting a model. */
struct outcome {
    int status; /* of the first transfer that failed, or 0 */
    struct device_fault fault;
    size_t transfers;
    uint64_t overflows;
    uint64_t copy_ns, kernel_ns;
};

/* Cuts the model into slots of at most `slot_bytes`, puts them all, waits until the last is done. decode: on the
 * device; else the slots hold what the arena gets. */
void model_put(const struct model *model, struct slots *slots, struct arena *arena, size_t slot_bytes, bool decode,
               struct outcome *ret);

/* Whether these are the arena's bytes, but for the sign and payload of NaN that were computed. */
bool model_same(const struct model *model, const uint8_t *got);

/* Reads the arena back and fails the test at the first byte that differs. Returns what reading returned. */
int model_check(const struct model *model, struct device *device, struct arena *arena, struct device_fault *ret_fault);

/* xorshift */
uint64_t random_next(uint64_t *state);
