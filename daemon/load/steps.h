/* The steps of a load that block. A worker runs them. A load runs one step at a time, and a step uses only its job. */
#pragma once

#include "daemon/base/worker.h"
#include "daemon/device/device.h"
#include "daemon/device/devices.h"
#include "daemon/gguf/gguf.h"
#include "daemon/model/access.h"
#include "daemon/model/plan.h"
#include "daemon/model/publication.h"
#include "daemon/model/source.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct load_job {
    struct work work;
    void (*run)(struct load_job *job);

    /* In. All borrowed, except the descriptors: load_job_identify() takes them over. */
    int fds[SOURCE_FILES_MAX];
    size_t n_fds; /* 0: open `path` */
    const char *path;
    bool trusted; /* may load, by path, files that are not world-readable */
    struct source *opened;
    struct device *device;
    const struct device_set *among; /* all devices that the model may go to */
    const struct forms *forms;
    const struct layout *layout;
    const struct plan *planned;
    const struct gguf *known; /* the header as it was read before */
    bool decode_on_cpu;
    struct arena *filled;
    struct access_facts *before; /* of the files of `judged`, as they were; the job's reference */
    const struct source *judged; /* NULL: load_job_seal() does not look who may read the files */

    /* Out. The job owns these. Who takes one over sets it to NULL, or `published` to PUBLICATION_NONE. */
    int status;
    bool refused; /* with -EACCES of load_job_identify(): the daemon refused, not open() */
    struct device_fault fault;
    struct gguf_fault gguf_fault;
    bool of_file;                     /* the error of load_job_seal() is the file's, not the device's */
    bool of_host;                     /* with -ENOMEM: the job itself had no memory; false: the device had none */
    size_t tensor;                    /* with -ENOTSUP: index of the tensor */
    struct layout_fault layout_fault; /* with -EDOM: the layout does not fit the model */
    size_t file;                      /* with -EBADMSG: index of the file in a split model */
    struct source *source;
    struct access_facts *facts; /* of the source's files */
    struct gguf *header;
    struct plan *plan;
    struct arena *arena;
    struct device_export export; /* the arena's */
    struct publication published;
    uint64_t reach[DEVICES_MAX]; /* of each device in `among`, for survey_note() */
    uint64_t memory_free;        /* with -ENOMEM of load_job_allocate(): bytes that the driver has free */
    uint64_t elapsed_ns;
    uint64_t begin_ns; /* set by the caller of run() */
    uint64_t end_ns;
};

/* In these comments, → stands between what a step reads and what it sets.
 *
 * fds, or path and trusted → source, facts. Errors: those of source_open_path(); or -EACCES and `refused`, if the user
 * may not load files from this path. That is the error for this user whether or not the file exists. */
void load_job_identify(struct load_job *job);

/* opened, device, forms, layout → header, plan. The plan is not cut. Errors: those of source_read_headers() and
 * plan_new_arranged(). */
void load_job_lay_out(struct load_job *job);

/* Does load_job_lay_out(), then cuts the plan for the device's slots, with decode_on_cpu and among, and sets `reach`. A
 * plan that is larger than every device's budget is not cut: it will never be filled. */
void load_job_open(struct load_job *job);

/* opened, known → source: the files as they are now, if they were touched since they were opened; else NULL.
 * -ESTALE: what their headers say is not what it was; or an errno of reading them. */
void load_job_look_again(struct load_job *job);

/* planned, device → arena. -ENOMEM sets of_host, or memory_free. */
void load_job_allocate(struct load_job *job);

/* For a cached model. planned, device → arena; and plan: plan_linear() of the arena. -ENOMEM as load_job_allocate(). */
void load_job_reallocate(struct load_job *job);

/* planned, filled → published, export. If opened is NULL, only export. Errors: those of publication_make(), whose
 * -ENOMEM sets of_host; and the device's. */
void load_job_publish(struct load_job *job);

/* opened, filled, judged, before → facts, which are NULL if they cannot be had. -ESTALE if the file changed meanwhile;
 * opened NULL: there is none. */
void load_job_seal(struct load_job *job);

/* among → reach. Asks the drivers how much memory models could use: other processes use the devices too. */
void load_job_ask(struct load_job *job);

/* Does nothing: load_step() runs again from the loop. */
void load_job_nothing(struct load_job *job);

/* filled, device → nothing. Frees the arena. */
void load_job_release(struct load_job *job);

/* The name of the step that `run` does: "parse", "allocate", ... Static. */
const char *load_job_name(const struct load_job *job);

/* Frees header and plan if they were not taken over. load_job_lay_out() can make them again. */
void load_job_forget(struct load_job *job);

/* Closes and frees all that was not taken over. There must be no arena: freeing one blocks, see load_job_release(). */
void load_job_clear(struct load_job *job);
