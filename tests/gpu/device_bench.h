/* What all tests of the GPU module through daemon/device/device.h begin with: its devices, and slots on the first one.
 *
 * Environment: ROCMFORGE_TEST_MODULE, the path of the module; ROCMFORGE_TEST_EXPORT, "fd" or "ipc". */
#pragma once

#include "tests/gpu/rig.h"

struct bench {
    struct device **devices;
    int n;
    struct slots slots; /* of the first device */
};

/* The module, and its fake runtime if it runs on that. */
extern struct rig rig;

/* They export memory as the environment says. Set by bench_begin(). */
extern struct device_config config;
/* What opening a device tries is tried with little: the fake takes less of the time. */
#define OPENED_QUICKLY                                                                                                 \
    .link_copies = 1, .link_bytes = 64u << 10, .trial_bytes = 4u << 20, .export_wish = config.export_wish
extern struct device_config quick_config;
/* Small sizes, and the same calls each time. */
extern struct device_config small_config;

/* Called first in main(). Loads the module and checks that there are devices. Returns 0; -ENODEV with the fault; or
 * another negative errno after printing why. */
int bench_begin(struct device_fault *ret_fault);

/* Opens the devices, with `slots` slots on the first. Returns an error of open() or slot_init(). */
int bench_open(struct bench *bench, const struct device_config *how, size_t slots, struct device_fault *fault);
void bench_close(struct bench *bench);

/* The functions below fail the test that calls them. */

void assert_fine(int r, const struct device_fault *fault);

/* Nothing is left of what the fake runtime counts. On a GPU this checks nothing. */
void assert_nothing_left(void);

/* On a GPU: ends the test as skipped. */
void skip_on_hardware(void);

/* Puts a model into a new arena and compares. */
void load_and_check(struct slots *slots, const struct model *model, size_t slot_bytes, bool decode);
