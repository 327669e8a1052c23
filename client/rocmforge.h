/* librocmforge: attach to model weights that a daemon keeps in memory, and read them in place.
 *
 *     rf_client *client;
 *     rf_model *model;
 *     rf_tensor tensor;
 *     if (rf_connect(NULL, &client) == 0 && rf_attach(client, "llama", &model) == 0 &&
 *         rf_model_find(model, "output.weight", &tensor) == 0)
 *         use(tensor.data, tensor.bytes);
 *
 * Functions return 0, or a negative errno; results are written only on success. After a failure rf_error_*() say more.
 * Strings and structs that a function gives are its object's and live as long as that, unless it says otherwise.
 *
 * Threads: a client, and the models attached through it, belong to one thread at a time. What a tensor's `data` points
 * to may be read by any thread until the model is detached.
 *
 * fork(): client and models stay the parent's. A child can free its copies, with rf_detach() and rf_close(), which then
 * say nothing to the daemon and do nothing to a GPU; and read memory of the host that was attached to. All else that
 * would ask the daemon or a GPU is -ENOTSUP there; for the daemon, the child connects anew. */
#ifndef ROCMFORGE_H
#define ROCMFORGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rf_client rf_client;
typedef struct rf_model rf_model;

/* "0.1.0". */
const char *rf_version(void);

/* Connects to the daemon at `socket`; NULL: at $ROCMFORGE_SOCKET, else /run/rocmforge/io.rocmforge if that exists, else
 * $XDG_RUNTIME_DIR/rocmforge/io.rocmforge. -ENOENT or -ECONNREFUSED: nobody listens there; -ETIMEDOUT: it does not take
 * connections. With a failure *ret is NULL, and rf_error_message(NULL) says why, for the calling thread. */
int rf_connect(const char *socket, rf_client **ret);

/* Detaches what is attached, which frees those models, and closes the connection. NULL is fine. Not from within a
 * function that the library calls. */
void rf_close(rf_client *client);

/* Why the last function that failed on this client, or on a model of it, did so: a sentence; never NULL. What this and
 * the next two give lives until another function is called on them. */
const char *rf_error_message(const rf_client *client);

/* The daemon's own error, "io.rocmforge.ModelBusy", if it was the daemon that said no; else NULL. */
const char *rf_error_name(const rf_client *client);

/* Its parameters as JSON text; else NULL. */
const char *rf_error_parameters(const rf_client *client);

/* --- any method --- */

#define RF_CALL_MORE 1u /* take several replies */

/* A reply: its parameters as JSON text, and whether others follow. The text is freed and the descriptors are closed
 * when the function returns; it sets those that it keeps to -1. Returns 0 to go on, or a negative errno that ends the
 * call, and with it the connection if replies are still to come. */
typedef int rf_reply_fn(void *context, const char *parameters, int continues, int *fds, size_t n_fds);

/* Calls a method of the interface io.rocmforge, "List", or any other by its full name, with parameters in JSON text
 * (NULL: none) and descriptors, which stay the caller's. Every reply goes to `reply`, which may be NULL. See
 * wire.md for the methods. Waits as long as the daemon takes. An error of the daemon gives the errno that
 * librocmforge(3) has for it, and rf_error_name(). -EPROTO: the daemon sent what it should not have. -ECONNRESET: it is
 * gone; every further call says so too. -EDEADLK: called from within `reply`; one connection has one call at a time. */
int rf_call(rf_client *client, const char *method, const char *parameters, unsigned flags, const int *fds, size_t n_fds,
            rf_reply_fn *reply, void *context);

/* The connection's socket, to poll. Not to be read from. Who will not wait as long as the daemon takes sets SO_RCVTIMEO
 * on it: a call that gets no answer for so long is -ETIMEDOUT, without rf_error_name(), and ends the connection.
 * Signals that the thread takes begin that time anew. */
int rf_client_fd(const rf_client *client);

/* A model that this connection has attached to is to be let go: somebody unloads it by force, and its memory goes when
 * it was detached everywhere; or its device was lost, and what is in its memory is void already. All that this
 * connection holds of it is to be detached, but not in here: one connection has one call at a time. `name` lives as
 * long as the call. */
typedef void rf_draining_fn(void *context, const char *name);

/* Has this function called, from within whatever call brings the news, once for each model, however often that is
 * attached. NULL: none, the default. The daemon speaks when it is spoken to: who is idle for long asks now and then,
 * with rf_call() of "Status". */
void rf_on_draining(rf_client *client, rf_draining_fn *function, void *context);

/* --- loading --- */

/* How far a load is. Bytes, bytes per second, seconds; seconds is negative while unknown. */
typedef struct rf_progress {
    const char *state; /* "opening", "allocating", "filling", "sealing", "resident" */
    uint64_t done;
    uint64_t total;
    uint64_t rate;
    double seconds_left;
} rf_progress;

/* Called several times a second; `progress` lives as long as the call. A result that is not 0 ends the call, which
 * returns it. This ends the connection too, and with it the leases that it holds. */
typedef int rf_progress_fn(void *context, const rf_progress *progress);

/* What to load and how; set `size` to sizeof(rf_load_options), and what is not said to 0. */
typedef struct rf_load_options {
    size_t size;
    const char *name;         /* NULL: from the file's name */
    const char *form;         /* NULL: "auto" */
    const char *device;       /* NULL: "auto" */
    const char *dequant;      /* NULL: "auto" */
    int no_wait;              /* return when the file was understood; the load goes on by itself */
    rf_progress_fn *progress; /* NULL: not */
    void *context;            /* of progress and reply */
    int pin;                  /* never evict it, nor unload it for idleness */
    int private_;             /* only this user sees it and can attach to it */
    uint64_t ttl_seconds;     /* of idleness after which it is unloaded; 0: never */
    double deadline_seconds;  /* after which it is given up, -ETIMEDOUT; 0: never */
    int trace;                /* the last answer tells what every worker and stream did when, to `reply` */
    rf_reply_fn *reply;       /* gets each answer of the daemon as it is, before `progress`; NULL: not */
} rf_load_options;

/* Loads the GGUF file at `path`, which the caller must be able to read; the daemon need not. Of a split model: its
 * first file ("-00001-of-00003.gguf"), which brings the others. Joins a load that is under way. Waits until the
 * model is resident, unless the options say otherwise; they may be NULL. Writes the name that the model has to `name`,
 * unless NULL, of RF_NAME_SIZE bytes. A negative errno of open(); -EINVAL: that is no regular file, or an option is
 * wrong; else as rf_call(). */
int rf_load(rf_client *client, const char *path, const rf_load_options *options, char *name);

#define RF_NAME_SIZE 128

/* What rf_load() would do. Set `size` to sizeof(rf_plan). */
typedef struct rf_plan {
    size_t size;
    int fits;            /* there is memory for it, with what would be evicted */
    int there;           /* it is there already, or on its way, and nothing would happen */
    uint64_t bytes;      /* that it would take on the device */
    uint64_t file_bytes; /* that would be read */
    uint64_t available;  /* that the device has for models now, without an eviction */
    size_t evicts;       /* how many models would be evicted; `reply` tells which */
    double seconds;      /* that it would take; negative while unknown */
} rf_plan;

/* Asks what rf_load() with these options would do, without doing it. 0 also if it does not fit. ret may be NULL. Fails
 * as rf_load() does. */
int rf_load_plan(rf_client *client, const char *path, const rf_load_options *options, rf_plan *ret);

/* Frees a model's memory. -ENOENT: no such model; -EBUSY: somebody is attached; -EACCES: it is another user's. */
int rf_unload(rf_client *client, const char *name);

/* --- attaching --- */

#define RF_DIMS_MAX 8

/* A tensor. */
typedef struct rf_tensor {
    const char *name; /* of any length, in UTF-8 */
    const char *type; /* in the file, as ggml names it: "q4_K"; one that the daemon does not know: "type137" */
    uint32_t type_id; /* and its number there */
    const char *form; /* what the bytes are: "f32", "f16", "bf16", or "native": blocks of `type` */
    uint32_t n_dims;  /* 0 to RF_DIMS_MAX */
    uint64_t shape[RF_DIMS_MAX]; /* slowest dimension first, as NumPy has it; the rest are 0 */
    uint64_t offset;             /* from the start of the model's memory, a multiple of 256 */
    uint64_t bytes;              /* of a type that the daemon does not know: all up to the file's next tensor */
    const void *data;            /* on the host: readable. On a GPU: a device pointer. */
    uint64_t padding;            /* zero bytes behind `bytes`, see below */
    const void *reserved[3];     /* NULL */
} rf_tensor;

/* Behind a tensor whose form is "native" and whose type is a quantised one stand zeros if its rows are no multiple of
 * 512 elements: as many bytes as blocks of the missing elements take, (512 - row % 512) / block_elements * block_bytes.
 * So a kernel that reads rows of whole 512 elements reads nothing but zeros behind the last one. On every device. */

/* Attaches to a resident model: maps its memory in place, read-only where that can be. Nothing is copied or read. Until
 * it is detached, or the connection closes, the daemon does not free it. A model that is being loaded is waited for.
 * -ENOENT: no such model; -EBUSY: it is on its way out, or what is left mapped of it, see rf_detach(), still cannot be
 * unmapped; -ENOTSUP: this machine has no module for its device; -ENODEV: this process does not see that device. The
 * caller ends it with rf_detach(), or with rf_close(). */
int rf_attach(rf_client *client, const char *name, rf_model **ret);

/* How to wait; set `size` to sizeof(rf_attach_options), and what is not said to 0. */
typedef struct rf_attach_options {
    size_t size;
    double deadline_seconds;  /* after which it is given up, -ETIMEDOUT; 0: never */
    rf_progress_fn *progress; /* of the load that is waited for; NULL: not */
    void *context;
} rf_attach_options;

/* rf_attach(), said how. options may be NULL. */
int rf_attach_with(rf_client *client, const char *name, const rf_attach_options *options, rf_model **ret);

/* Unmaps the memory, gives the lease back and frees the model, whatever it returns: -ECONNRESET if the connection is
 * gone, and the lease with it. Pointers into the memory are void from now on. NULL is fine. But from within a callback
 * it does nothing and returns -EDEADLK.
 *
 * On a GPU this waits for all work of the device. If a stream of it (on ROCm: of any GPU of the process) is being
 * captured into a graph, that may break the capture, and then the memory stays mapped until another model there is
 * detached, this one is attached again, or the process ends: detach before a capture or after it. */
int rf_detach(rf_model *model);

const char *rf_model_name(const rf_model *model);
/* Never used twice by one daemon. */
uint64_t rf_model_id(const rf_model *model);

/* Where it is: "host", "hip:0"; the device's kind, and identity that holds between processes, or NULL. A UUID is what
 * rocminfo tells ("GPU-4c6a51b5d1f2c3a7"), or what nvidia-smi tells less the "GPU-" before it. */
const char *rf_model_device(const rf_model *model);
const char *rf_model_device_kind(const rf_model *model);
const char *rf_model_device_uuid(const rf_model *model);
const char *rf_model_device_pci(const rf_model *model);

/* The whole of its memory; NULL if it has no bytes. */
const void *rf_model_data(const rf_model *model);
uint64_t rf_model_bytes(const rf_model *model);

/* Copies bytes of the model's memory, wherever it is, to the host. -ERANGE: they are not all inside; -EIO: the GPU that
 * they are on failed. */
int rf_model_read(const rf_model *model, uint64_t offset, void *dst, size_t size);

/* Tensors, in the order of the file. */
size_t rf_model_tensors(const rf_model *model);
/* -ERANGE. */
int rf_model_tensor(const rf_model *model, size_t index, rf_tensor *ret);
/* -ENOENT. */
int rf_model_find(const rf_model *model, const char *name, rf_tensor *ret);

#ifdef __cplusplus
}
#endif

#endif
