/* The steps of a load that block. A worker runs them. A load runs one step at a time, and a step uses only its job. */
#pragma once

#include "daemon/base/worker.h"
#include "daemon/device/device.h"
#include "daemon/device/devices.h"
#include "daemon/header/model_header.h"
#include "daemon/model/access.h"
#include "daemon/model/manifest.h"
#include "daemon/model/plan.h"
#include "daemon/model/publication.h"
#include "daemon/model/source.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct client_text;

struct load_job {
    struct work work;
    void (*run)(struct load_job *job);

    /* In. All borrowed, except the descriptors: load_job_identify() takes them over. */
    int fds[SOURCE_FILES_MAX];
    size_t n_fds;          /* 0: open `path` */
    struct closer *closer; /* the source gets it; it also closes descriptors that no step used */
    uid_t uid;             /* who loads; the source gets it too */
    const char *path;
    bool trusted; /* may load, by path, files that are not world-readable */
    struct source *opened;
    struct device *device;
    const struct device_set *among; /* all devices that the model may go to */
    const struct forms *forms;
    const struct layout *layout;
    const struct plan *planned;
    const struct model_header *known; /* the header as it was read before */
    bool decode_on_cpu;
    struct arena *filled;
    struct access_facts *before;                  /* of the files of `judged`, as they were; the job's reference */
    const struct client_text *tensors, *metadata; /* of a creation */
    uint64_t bytes;                               /* of its memory; 0: as many as the tensors need */
    const char *key;                              /* its key; NULL: none */
    struct manifest *manifest;                    /* of its model; the job changes metadata and key */
    const struct source *judged;                  /* NULL: load_job_seal() does not look who may read the files */

    /* Out. The job owns these. Who takes one over sets it to NULL, or `published` to PUBLICATION_NONE. */
    int status;
    bool refused; /* with -EACCES of load_job_identify(): the daemon refused, not open() */
    struct device_fault fault;
    struct header_fault header_fault;
    bool of_file;                     /* the error of load_job_seal() is the file's, not the device's */
    bool of_host;                     /* with -ENOMEM: the job itself had no memory; false: the device had none */
    size_t tensor;                    /* with -ENOTSUP: index of the tensor */
    struct layout_fault layout_fault; /* with -EDOM: the layout does not fit the model */
    size_t file;                      /* with -EBADMSG: index of the file in a split model */
    struct source *source;
    struct source *sorted;        /* of load_job_open(): the files in the order that they say; NULL: they are in it */
    struct shard_paths ambiguous; /* with -ENOTUNIQ of load_job_identify(): files that may be the same one of a model */
    struct access_facts *facts;   /* of the source's files */
    struct model_header *header;
    struct plan *plan;
    struct arena *arena;
    struct device_export export; /* the arena's */
    struct publication published;
    bool pinned;                          /* of load_job_reallocate(): the device copies from host memory by itself */
    struct manifest_parsed parsed;        /* made of a creation's list of tensors */
    struct manifest_fault manifest_fault; /* with -EBADMSG of a creation's steps */
    char *text;                           /* of load_job_lend() */
    uint64_t reach[DEVICES_MAX];          /* of each device in `among`, for survey_note() */
    uint64_t memory_free;                 /* with -ENOMEM of load_job_allocate(): bytes that the driver has free */
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

/* opened → sorted, and `opened` is that then. Does load_job_lay_out(), then cuts the plan for the device's slots, with
 * decode_on_cpu and among, and sets `reach`. A plan that is larger than every device's budget is not cut: it will never
 * be filled. */
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

/* → source: one without files, for a creation. */
void load_job_no_source(struct load_job *job);

/* tensors, bytes, device, among → parts; reach. Errors are those of manifest_parse(); a list that cannot be read is
 * -EBADMSG too. */
void load_job_manifest(struct load_job *job);

/* planned, filled, device → export; text: the tensors' offsets, as JSON. The memory is the client's from now on.
 * -ENOMEM sets of_host; or an error of the device. */
void load_job_lend(struct load_job *job);

/* tensors (which may not be given), metadata, key, bytes, device, planned, filled, manifest → published; parts, if
 * there are tensors. Seals the memory. Errors: of_file: -EBADMSG or -ENOMEM, of the texts; of_host: -ENOMEM; else of
 * the device: -EBUSY: the memory is still mapped for writing. After an error it can be tried again. */
void load_job_publish_creation(struct load_job *job);

/* Does nothing: load_step() runs again from the loop. */
void load_job_nothing(struct load_job *job);

/* filled, device → nothing. Frees the arena. */
void load_job_release(struct load_job *job);

/* Whether the step that `run` does reads files, or asks for their state. */
bool load_job_uses_files(const struct load_job *job);

/* The name of the step that `run` does: "parse", "allocate", ... Static. Those of a creation have none: nobody traces
 * it. */
const char *load_job_name(const struct load_job *job);

/* Frees header and plan if they were not taken over. load_job_lay_out() can make them again. */
void load_job_forget(struct load_job *job);

/* Closes and frees all that was not taken over. There must be no arena: freeing one blocks, see load_job_release(). */
void load_job_clear(struct load_job *job);
