#include "daemon/api/metrics.h"

#include "daemon/base/json_text.h"
#include "daemon/model/calling.h"

#include <math.h>
#include <stdio.h>

/* docs/metrics.md lists all names; a test compares. */

static cJSON *metric(cJSON *metrics, const char *name, const char *type, const char *help)
{
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "name", name);
    cJSON_AddStringToObject(object, "type", type);
    cJSON_AddStringToObject(object, "help", help);
    cJSON *samples = cJSON_AddArrayToObject(object, "samples");
    json_append(metrics, object);
    return samples;
}

/* Adds a sample, and returns its labels, for label(). */
static cJSON *sample(cJSON *samples, double value)
{
    cJSON *object = cJSON_CreateObject();
    cJSON *labels = cJSON_AddArrayToObject(object, "labels");
    cJSON_AddNumberToObject(object, "value", value);
    json_append(samples, object);
    return labels;
}

static void label(cJSON *labels, const char *name, const char *value)
{
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "name", name);
    cJSON_AddStringToObject(object, "value", value);
    json_append(labels, object);
}

static void gauge(cJSON *metrics, const char *name, const char *help, double value)
{
    sample(metric(metrics, name, "gauge", help), value);
}

static void counter(cJSON *metrics, const char *name, const char *help, double value)
{
    sample(metric(metrics, name, "counter", help), value);
}

/* --- the daemon, its devices and its models --- */

static void describe_daemon(cJSON *metrics, const struct api *api)
{
    label(sample(metric(metrics, "rocmforge_build_info", "gauge", "Always 1; the label has the version of the daemon."),
                 1),
          "version", ROCMFORGE_VERSION);
    gauge(metrics, "rocmforge_uptime_seconds", "Seconds since the daemon started.",
          (double)((uv_hrtime() - api->started) / 1000000) / 1e3);
    gauge(metrics, "rocmforge_connections", "Connections of clients that are open.", (double)conns_count(api->conns));
}

/* What devices have of something. */
static uint64_t device_total(const struct device *device)
{
    return device->total;
}

static uint64_t device_budget(const struct device *device)
{
    return device->budget;
}

static uint64_t device_used(const struct device *device)
{
    return device->used;
}

static uint64_t device_queued(const struct device *device)
{
    return device->queued;
}

static uint64_t device_ready(const struct device *device)
{
    return !device->failed;
}

static const struct {
    const char *name;
    const char *help;
    uint64_t (*read)(const struct device *device);
} of_devices[] = {
    {"rocmforge_device_ready", "1, or 0 after an error that the device does not recover from.", device_ready},
    {"rocmforge_device_memory_size_bytes", "Memory that the device has.", device_total},
    {"rocmforge_device_memory_budget_bytes", "Memory that all models together may take.", device_budget},
    {"rocmforge_device_memory_models_bytes", "Memory that models take or have reserved.", device_used},
    {"rocmforge_device_memory_others_bytes", "Memory that other processes, the driver and the system take.",
     device_others},
    {"rocmforge_device_memory_available_bytes", "Memory that a load could get now without an eviction.",
     device_available},
    {"rocmforge_device_memory_queued_bytes", "Memory that queued loads wait for.", device_queued},
};

static void describe_devices(cJSON *metrics, const struct devices *devices)
{
    for (size_t i = 0; i < sizeof(of_devices) / sizeof(of_devices[0]); i++) {
        cJSON *samples = metric(metrics, of_devices[i].name, "gauge", of_devices[i].help);
        for (size_t k = 0; k < devices->n; k++)
            label(sample(samples, (double)of_devices[i].read(devices->devices[k])), "device", devices->devices[k]->id);
    }
}

static cJSON *sample_of_model(cJSON *samples, const struct model *model, const char *name, double value)
{
    char id[24];
    snprintf(id, sizeof(id), "%llu", (unsigned long long)model->id);
    cJSON *labels = sample(samples, value);
    label(labels, "model", name);
    label(labels, "id", id);
    label(labels, "device", model->device->id);
    return labels;
}

static void describe_models(cJSON *metrics, const struct registry *registry, const struct peer *peer)
{
    cJSON *bytes = metric(metrics, "rocmforge_model_memory_bytes", "gauge",
                          "Memory of a model on its device, or in host memory while it is cached.");
    cJSON *leases = metric(metrics, "rocmforge_model_leases", "gauge", "Leases that clients have on a model.");
    const struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (!model_visible(model, peer))
            continue;
        char room[MODEL_NAME_SIZE];
        const char *name = model_called(model, peer, room);
        cJSON *labels = sample_of_model(bytes, model, name, model->plan ? (double)model->plan->arena_bytes : 0);
        label(labels, "form", forms_word(model->forms->form));
        label(labels, "state", model_state_name(model->state));
        if (model_is_published(model))
            label(labels, "source", "published");
        sample_of_model(leases, model, name, (double)model->n_leases);
    }
}

/* Numbers, which name no model: all of them count. */
static void describe_queues(cJSON *metrics, const struct api *api)
{
    size_t queued = 0;
    const struct model *model;
    TAILQ_FOREACH(model, &api->registry->models, link)
    {
        queued += model->state == MODEL_QUEUED;
    }
    gauge(metrics, "rocmforge_loads_running", "Loads under way, with those that are queued.", (double)api->loads->n);
    gauge(metrics, "rocmforge_loads_queued", "Loads that wait for memory.", (double)queued);
    gauge(metrics, "rocmforge_verifications_running", "Verifications and comparisons under way.",
          (double)verifies_count(api->verifies));
    gauge(metrics, "rocmforge_jobs_queued", "Jobs that wait for a worker: parts of files to read, and others.",
          workers_waiting(api->core->queue));
    gauge(metrics, "rocmforge_workers", "Threads that read files and decode blocks.", api->core->workers);
}

/* --- what happened --- */

/* Adds a sample of a histogram, and returns its labels. */
static cJSON *sample_with(cJSON *samples, const char *suffix, const char *outcome, double value)
{
    cJSON *labels = sample(samples, value);
    label(labels, "outcome", outcome);
    cJSON_AddStringToObject(cJSON_GetArrayItem(samples, cJSON_GetArraySize(samples) - 1), "suffix", suffix);
    return labels;
}

static void describe_histogram(cJSON *samples, const char *outcome, const struct histogram *histogram)
{
    uint64_t below = 0;
    for (size_t i = 0; i < COUNTERS_BUCKETS; i++) {
        char bound[24] = "+Inf";
        below += histogram->buckets[i];
        if (isfinite(histogram_bound(i)))
            snprintf(bound, sizeof(bound), "%g", histogram_bound(i));
        label(sample_with(samples, "_bucket", outcome, (double)below), "le", bound);
    }
    sample_with(samples, "_sum", outcome, histogram->sum);
    sample_with(samples, "_count", outcome, (double)histogram->n);
}

static void describe_loads(cJSON *metrics, const struct counters *counters)
{
    cJSON *loads = metric(metrics, "rocmforge_loads_total", "counter", "Loads that have ended.");
    cJSON *bytes = metric(metrics, "rocmforge_load_read_bytes_total", "counter",
                          "Bytes that loads have read, of files or of copies in host memory.");
    cJSON *seconds = metric(metrics, "rocmforge_load_duration_seconds", "histogram",
                            "Seconds from the request to the end of a load.");
    for (size_t i = 0; i < OUTCOMES; i++) {
        const char *outcome = load_outcome_name((enum load_outcome)i);
        label(sample(loads, (double)counters->loads[i]), "outcome", outcome);
        label(sample(bytes, (double)counters->load_bytes[i]), "outcome", outcome);
        describe_histogram(seconds, outcome, &counters->load_seconds[i]);
    }
}

/* Errors that were never sent are left out. */
static void describe_errors(cJSON *metrics, const struct counters *counters)
{
    cJSON *errors = metric(metrics, "rocmforge_errors_total", "counter", "Errors that calls ended with.");
    for (size_t i = 1; i < WIRE_ERROR_COUNT; i++)
        if (counters->errors[i] > 0)
            label(sample(errors, (double)counters->errors[i]), "error", wire_error_name((enum wire_error)i));
    cJSON *refusals = metric(metrics, "rocmforge_refusals_total", "counter", "Errors because a limit was reached.");
    for (size_t i = 0; i < COUNTERS_LIMITS && counters->refusals[i].limit[0]; i++)
        label(sample(refusals, (double)counters->refusals[i].n), "limit", counters->refusals[i].limit);
}

cJSON *metrics_describe(const struct api *api, const struct peer *peer)
{
    const struct counters *counters = &api->core->counters;
    cJSON *metrics = cJSON_CreateArray();
    describe_daemon(metrics, api);
    describe_devices(metrics, api->devices);
    describe_models(metrics, api->registry, peer);
    describe_queues(metrics, api);
    describe_loads(metrics, counters);
    counter(metrics, "rocmforge_evictions_total", "Models that were evicted to make room.",
            (double)counters->evictions);
    counter(metrics, "rocmforge_evicted_bytes_total", "Memory of these models.", (double)counters->evicted_bytes);
    describe_errors(metrics, counters);
    return metrics;
}
