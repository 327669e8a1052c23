/* Tests a device module: loads it, uses it as the daemon does, and compares the result with the CPU's decoders, bit
 * for bit. The module is the real one, on a GPU or on tests/fake_hip. */
#pragma once

#include "daemon/device/device.h"
#include "tests/fake_hip/fake_hip.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The module, and functions of the fake runtime; these are NULL on a real GPU. */
struct rig {
    const struct device_module *module;
    void (*inject)(const char *spec);
    bool (*fired)(void);
    unsigned long (*copies_delayed)(void);
    bool (*call)(unsigned index, const char **ret_name, unsigned long *ret_calls);
    void (*count)(struct fake_hip_live *ret);
};

/* Loads the module that ROCMFORGE_TEST_MODULE names. Returns 0, or -ENOENT after printing why. */
int rig_load(struct rig *ret);

/* How devices are to export memory: what ROCMFORGE_TEST_EXPORT says, "fd" or "ipc"; else the device's choice. */
enum export_wish rig_export_wish(void);

/* Looks up the functions of the fake runtime, if the object is linked with it. */
void rig_find_fake(struct rig *rig, void *object);

/* How often a call was made since the last inject(). */
unsigned long rig_calls(const struct rig *rig, const char *name);

/* Runs `session` once without a fault, and then once for each call that it made, with that call failing with `code`.
 * `session` gets what was injected (NULL the first time) and returns whether it failed. Fails the test if the object
 * at `path` uses a call that was never made to fail. */
void rig_sweep(const struct rig *rig, const char *path, const char *code, bool (*session)(const char *spec));

/* A tensor of a test's model. */
struct chunk_part {
    const struct tensor_type *type;
    enum form form; /* FORM_NATIVE: not decoded */
    uint64_t blocks;
};

/* A model: the bytes of its file, and the bytes that its arena must have. */
struct model {
    struct piece *pieces; /* slot offsets are those in `file`, which model_put() cuts into slots */
    size_t n_pieces;
    uint8_t *file;
    uint64_t file_bytes;
    uint8_t *expected; /* 0 in gaps */
    uint64_t arena_bytes;
    uint64_t overflows;
};

/* Makes a model of random bytes, which depend on `seed`. Each part begins `skew` bytes after a multiple of 32 in the
 * file. */
void model_make(struct model *ret, const struct chunk_part *parts, size_t n, unsigned skew, uint64_t seed);
void model_drop(struct model *model);

/* Makes an arena that is cleared everywhere, for models that do not fill it. */
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

/* Makes `n` slots. After an error there are none. */
int slots_make(struct slots *ret, struct device *device, size_t n, struct device_fault *ret_fault);
void slots_drop(struct slots *slots);

/* The result of putting a model. */
struct outcome {
    int status; /* status of the first transfer that failed, or 0 */
    struct device_fault fault;
    size_t transfers;
    uint64_t overflows;
    uint64_t copy_ns, kernel_ns;
};

/* Splits the model into slots of at most `slot_bytes`, puts them all and waits for the last. decode: the device
 * decodes; otherwise the slots hold what goes into the arena. */
void model_put(const struct model *model, struct slots *slots, struct arena *arena, size_t slot_bytes, bool decode,
               struct outcome *ret);

/* Whether these bytes are right, except for the sign and payload of computed NaNs. */
bool model_same(const struct model *model, const uint8_t *got);

/* Reads the arena back. Fails the test at the first wrong byte. Returns what reading returned. */
int model_check(const struct model *model, struct device *device, struct arena *arena, struct device_fault *ret_fault);

/* A random number (xorshift). */
uint64_t random_next(uint64_t *state);
