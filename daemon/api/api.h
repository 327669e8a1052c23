/* The parts of the daemon that the methods of the interface use. The owner fills it in.
 *
 * Loop thread only. */
#pragma once

#include "daemon/api/recheck.h"
#include "daemon/base/core.h"
#include "daemon/device/devices.h"
#include "daemon/load/load.h"
#include "daemon/load/verify.h"
#include "daemon/memory/residency.h"
#include "daemon/memory/survey.h"
#include "daemon/model/registry.h"
#include "daemon/session/events.h"
#include "daemon/wire/conn.h"

#include <stdbool.h>
#include <stdint.h>

struct api {
    struct core *core;
    struct devices *devices;
    struct registry *registry;
    struct residency *residency;
    struct survey *survey;
    struct loads *loads;
    struct verifies *verifies;
    struct rechecks *rechecks;
    struct events *events;
    struct quota *quota;
    struct conns *conns;
    uint64_t started; /* uv_hrtime() when the daemon started */
    bool awaits;      /* the GPUs' drivers have not started yet: see methods_hold() */
};
