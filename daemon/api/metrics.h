/* The daemon's metrics, as Prometheus has them.
 *
 * Loop thread only. */
#pragma once

#include "daemon/api/api.h"

#include <cjson/cJSON.h>

/* An array of Metric (io.rocmforge.varlink), the caller's. Models that the peer does not see are not named in it. What
 * the drivers said last holds for the devices. */
cJSON *metrics_describe(const struct api *api, const struct peer *peer);
