/* What every test of the GPU module through daemon/device.h starts from: its devices, with slots on the first.
 *
 * Environment: ROCMFORGE_TEST_MODULE, the module. */
#pragma once

#include "tests/gpu/rig.h"

struct bench {
    struct device **devices;
    int n;
    struct slots slots; /* of the first device */
};

/* The module, and the stand-in for its runtime if it is one that runs. */
extern struct rig rig;

extern const struct device_config config;
/* Small, and the same calls each time. */
extern const struct device_config small_config;

/* First thing in main(): loads the module and sees whether there are devices. Returns 0; -ENODEV and the fault; or
 * another negative errno, after saying why. */
int bench_begin(struct device_fault *ret_fault);

/* The errors of the module's open(), and of slots. */
int bench_open(struct bench *bench, const struct device_config *how, size_t slots, struct device_fault *fault);
void bench_close(struct bench *bench);

/* The rest fails the test that calls it. */

void assert_fine(int r, const struct device_fault *fault);

/* Of what is counted, which only the stand-in does. */
void assert_nothing_left(void);

/* Ends the test, as one that was skipped. */
void skip_on_hardware(void);

/* Puts a model into a fresh arena and compares. */
void load_and_check(struct slots *slots, const struct model *model, size_t slot_bytes, bool decode);
