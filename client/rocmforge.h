/* librocmforge: attaches to model weights that a daemon keeps in memory, and reads them in place.
 *
 *     rf_client *client;
 *     rf_model *model;
 *     rf_tensor tensor;
 *     if (rf_connect(NULL, &client) == 0 && rf_attach(client, "llama", &model) == 0 &&
 *         rf_model_find(model, "output.weight", &tensor) == 0)
 *         use(tensor.data, tensor.bytes);
 *
 * Functions return 0, or a negative errno. They write results only on success. After a failure, rf_error_message(),
 * rf_error_name() and rf_error_parameters() tell more. A string or struct that a function returns belongs to the object
 * that it was called with, and is valid as long as that object, unless the function says otherwise.
 *
 * Threads: a client, and the models attached through it, are used by one thread at a time. The memory that a tensor's
 * `data` points to may be read by any thread until the model is detached.
 *
 * fork(): client and models belong to the parent process. In a child, rf_detach() and rf_close() free the child's
 * copies, without a message to the daemon and without a call to a GPU's runtime; and host memory that the parent
 * attached to can be read. Every other function that would need the daemon or a GPU returns -ENOTSUP there. To use the
 * daemon, the child connects for itself. */
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

/* Connects to the daemon that listens at the path `socket`. NULL: the path in $ROCMFORGE_SOCKET; else
 * /run/rocmforge/io.rocmforge if that exists; else $XDG_RUNTIME_DIR/rocmforge/io.rocmforge. -ENOENT or -ECONNREFUSED:
 * no daemon listens there. -ETIMEDOUT: the daemon does not accept connections. After a failure *ret is NULL, and
 * rf_error_message(NULL) is the reason, in the calling thread. */
int rf_connect(const char *socket, rf_client **ret);

/* Detaches and frees all models of the client, and closes the connection. client may be NULL. It must not be called
 * from within a function that the library calls. */
void rf_close(rf_client *client);

/* Why the last function that failed on this client, or on one of its models, failed: a sentence, never NULL. This
 * string, and those of the next two functions, are valid until another function is called on the client or one of its
 * models. */
const char *rf_error_message(const rf_client *client);

/* The name of the daemon's error, "io.rocmforge.ModelBusy". NULL: the failure was not an error of the daemon. */
const char *rf_error_name(const rf_client *client);

/* The parameters of the daemon's error as JSON text; else NULL. */
const char *rf_error_parameters(const rf_client *client);

/* Connects again to the same daemon, or to the next one at the same path, after a call returned -ECONNRESET; and takes
 * the leases of all models of the client again. The models stay as they are, and so does their memory: pointers into it
 * stay valid all the time. A daemon that was restarted holds models that it took back for half a minute (`--grace` in
 * rocmforged(8)), so that this can be called in time. Tries for so many seconds; 0: once.
 *
 * -ESTALE: the client is connected again, but the daemon does not have one or several of the models, or somebody
 * unloads them there by force already. These have no lease. Their memory on the host can still be read, but the daemon
 * does not count it any more; detach such a model, and load it again. rf_model_leased() tells which they are. -EINVAL:
 * `seconds` is negative or no number. Other errors are those of rf_connect() and rf_call(): no model has a lease then,
 * and it can be tried again. The socket may get another number, see rf_client_fd(); SO_RCVTIMEO stays. */
int rf_reconnect(rf_client *client, double seconds);

/* --- any method --- */

#define RF_CALL_MORE 1u /* accept several replies */

/* Gets a reply: its parameters as JSON text; `continues` is not 0 if another reply follows. When the function returns,
 * the text is freed and the descriptors are closed. To keep a descriptor, it sets that fds[i] to -1. Returns 0 to go
 * on. A negative errno ends the call; if replies are still to come, it ends the connection too. */
typedef int rf_reply_fn(void *context, const char *parameters, int continues, int *fds, size_t n_fds);

/* Calls a method: of the interface io.rocmforge by its short name, "List", any other by its full name. `parameters` are
 * JSON text; NULL: none. The descriptors stay open and belong to the caller. `reply` gets every reply; it may be NULL.
 * wire.md describes the methods. There is no time limit: see rf_client_fd().
 *
 * If the daemon answers with an error, returns the errno that librocmforge(3) lists for it, and rf_error_name() has its
 * name. -EPROTO: the daemon sent something invalid. -ECONNRESET: the connection is closed; every further call returns
 * the same. -EDEADLK: it was called from within `reply`; a connection has one call at a time. */
int rf_call(rf_client *client, const char *method, const char *parameters, unsigned flags, const int *fds, size_t n_fds,
            rf_reply_fn *reply, void *context);

/* The socket of the connection. It may be polled, but not read or written. To limit how long a call waits for the
 * daemon, set SO_RCVTIMEO on it: a call that gets no answer in that time returns -ETIMEDOUT, rf_error_name() is NULL,
 * and the connection is closed. A signal that the thread handles starts that time again. */
int rf_client_fd(const rf_client *client);

/* Tells that the program should detach a model, as often as this connection has attached it. The reason is one of two:
 * a client unloads the model by force, and its memory is freed when all have detached; or its device was lost, and its
 * memory has no valid content any more. Do not detach from within this function: a connection has one call at a time.
 * `name` is valid during the call. */
typedef void rf_draining_fn(void *context, const char *name);

/* Sets that function; NULL, the default: none. It is called once for each model, even if the model is attached several
 * times. The daemon sends such news only inside replies, so the function is called from within another call of the
 * library. A program that makes no calls for a long time should call "Status" from time to time, with rf_call(). If
 * that returns -ECONNRESET, the daemon has ended: rf_reconnect() takes the leases again, and calls the function for
 * models that drain in the next daemon already; of the others the program is told as before. */
void rf_on_draining(rf_client *client, rf_draining_fn *function, void *context);

/* --- loading --- */

/* The progress of a load, in bytes, bytes per second and seconds. */
typedef struct rf_progress {
    const char *state; /* "opening", "queued", "allocating", "filling", "sealing", "resident" */
    uint64_t done;
    uint64_t total;
    uint64_t rate;
    double seconds_left; /* negative: not known yet */
} rf_progress;

/* Called several times a second. `progress` is valid during the call. Returns 0 to go on. Another value ends the call
 * of the library, which returns that value. It also ends the connection, and with it all leases of the connection. */
typedef int rf_progress_fn(void *context, const rf_progress *progress);

/* A form for the tensors whose names match a pattern: "*norm*", "blk.?.ffn_*", "[a-c]*". */
typedef struct rf_form_rule {
    /* Of the whole name: * is any text, ? one character, [...] one of a set, a backslash takes the meaning of the next.
     */
    const char *match;
    const char *form; /* as in rf_load_options */
} rf_form_rule;

/* Tensors that stand in memory as neighbours, without padding, and are one tensor more: see Group in
 * io.rocmforge.varlink. */
typedef struct rf_group {
    const char *name;
    const char *const *members;
    size_t n_members;
    uint32_t stack;  /* 0: joined along the first dimension; n: each n of them are, and the results are stacked */
    uint32_t heads;  /* 0: rows as in the file; n: rows in pairs become rows in halves, in each of n heads */
    const char *cut; /* "rows", "columns"; NULL: each part of a model has the members whole */
} rf_group;

/* Options of a load. Set `size` to sizeof(rf_load_options), and the options that you do not use to 0. */
typedef struct rf_load_options {
    size_t size;
    const char *name;         /* NULL: derived from the file's name */
    const char *form;         /* NULL: "auto"; with "f16" and "bf16", f32 tensors of one dimension stay f32 */
    const char *device;       /* NULL: "auto" */
    const char *dequant;      /* NULL: "auto" */
    int no_wait;              /* return when the memory was allocated; the load goes on without this client */
    rf_progress_fn *progress; /* NULL: none */
    void *context;            /* passed to progress and reply */
    int pin;                  /* never evict the model, nor unload it when it is idle */
    int private_;             /* only this user sees the model and can attach to it */
    uint64_t ttl_seconds;     /* unload the model after so many idle seconds; 0: never */
    double deadline_seconds;  /* give up after so many seconds, -ETIMEDOUT; 0: never */
    int trace;                /* the last reply has a trace: what every worker and stream did, and when */
    rf_reply_fn *reply;       /* gets each reply of the daemon unchanged, before `progress`; NULL: none */
    /* If there is not enough memory, queue for so many seconds until there is; 0: do not. Queued loads get memory in
     * the order in which they came. `state` of the progress is "queued" meanwhile. */
    double wait_for_memory_seconds;
    const rf_form_rule *forms; /* other forms for some tensors: the last rule that matches a name holds */
    size_t n_forms;            /* at most 64 */
    int replace; /* if a model of this user has the name, the new model takes it when resident; the old one drains */
    int public_; /* every user sees the model and can attach to it; only for who owns the files, and for root */
    const char *layout;     /* "vllm", "hf"; NULL: as in the file */
    const rf_group *groups; /* groups besides those of the layout */
    size_t n_groups;
    /* Only one part of a model that tp_size processes share is loaded, that of number tp_rank, from 0. 0: all of it.
     * The model's attention heads, and those of k and v; 0: the library reads them from config.json beside the files,
     * or else the daemon finds them out. */
    uint32_t tp_rank;
    uint32_t tp_size;
    uint32_t tp_heads;
    uint32_t tp_kv_heads;
} rf_load_options;

/* Loads the GGUF or safetensors file at `path`, or the folder of safetensors files: those that its index names
 * (model.safetensors.index.json), or model.safetensors. The caller must be able to read the files; the daemon need not.
 * For a split model, `path` is its first file, and the others are found: by their names ("-00002-of-00003.gguf") beside
 * it or beside what each link leads to, or there by what they say. Any safetensors file stands for all that the index
 * beside it names together with it; or, without an index, for those of its name's numbers. -ENOTUNIQ: that leaves a
 * choice; give all files to rf_load_files(). The default name is that of a link or of a folder, or else of the file; of
 * a part of a model it has ".tp0of2", for example, at its end. If the file is resident or being loaded already, the
 * call joins that model, and a `name` in the options becomes a further name of it. Waits until the model is resident,
 * unless no_wait is set. `options` may be NULL. Until somebody attaches to the model it may be evicted:
 * rf_load_attach() loads it and attaches to it. Writes the name of the model to `name`, which has RF_NAME_SIZE bytes or
 * is NULL. Returns 0; a negative errno of open(); -EINVAL: `path` is no regular file, or an option is wrong; or an
 * error as of rf_call().
 */
int rf_load(rf_client *client, const char *path, const rf_load_options *options, char *name);

/* Gets the path of a file. */
typedef void rf_file_fn(void *context, const char *path);

/* Finds the files that rf_load() would load for this path, in the order of their numbers; needs no daemon. `file` is
 * called for each. Returns 0, or a negative errno; then `file` was called for the paths that it is about: -ENOENT: for
 * each file that is missing, if a name of it is known; -ENOTUNIQ: for those that may be the same one; other errors, of
 * opening `path`: for none. */
int rf_model_files(const char *path, rf_file_fn *file, void *context);

/* The same as rf_load() with all files of a split model, in any order; with one path as rf_load(). -ENODATA: they are
 * safetensors files, and an index, or their names, tell of others that are not among them. */
int rf_load_files(rf_client *client, const char *const *paths, size_t n, const rf_load_options *options, char *name);

#define RF_NAME_SIZE 128

/* What rf_load() would do. Set `size` to sizeof(rf_plan) before the call. */
typedef struct rf_plan {
    size_t size;
    int fits;            /* there is enough memory for the model, after the evictions below */
    int there;           /* the model is resident or being loaded already: the load would join it */
    uint64_t bytes;      /* memory that the model would take on the device */
    uint64_t file_bytes; /* bytes of the file that would be read */
    uint64_t available;  /* bytes that the device has for models now, without evictions */
    size_t evicts;       /* how many models would be evicted; `reply` gets their names */
    double seconds;      /* how long the load would take; negative: not known yet */
    int error;           /* what rf_load() would return: 0, -ENOMEM, -EEXIST if the name is taken, -EBUSY, -EDQUOT */
} rf_plan;

/* Tells what rf_load() with these options would do, without doing it. Returns 0 even if the model does not fit. ret may
 * be NULL. Errors are those of rf_load(). */
int rf_load_plan(rf_client *client, const char *path, const rf_load_options *options, rf_plan *ret);

/* The same of rf_load_files(). */
int rf_load_plan_files(rf_client *client, const char *const *paths, size_t n, const rf_load_options *options,
                       rf_plan *ret);

/* Frees the memory of a model. -ENOENT: there is no such model. -EBUSY: a client is attached to it, or it is being
 * loaded. -EACCES: another user loaded it. */
int rf_unload(rf_client *client, const char *name);

/* --- attaching --- */

#define RF_DIMS_MAX 8

/* A tensor. */
typedef struct rf_tensor {
    const char *name; /* of any length, in UTF-8 */
    const char *type; /* its type in the file, as ggml names it: "q4_K"; if the daemon does not know it: "type137" */
    uint32_t type_id; /* the number of that type in the file */
    const char *form; /* what its bytes in memory are: "f32", "f16", "bf16", or "native": blocks of `type` */
    uint32_t n_dims;  /* 0 to RF_DIMS_MAX */
    uint64_t shape[RF_DIMS_MAX]; /* slowest dimension first, as NumPy has it; the rest are 0 */
    uint64_t offset;  /* from the start of the model's memory; a multiple of 256, but in groups and published models */
    uint64_t bytes;   /* of a type that the daemon does not know: all up to the next tensor in the file */
    const void *data; /* on the host: readable memory; on a GPU: a device pointer */
    uint64_t padding; /* zero bytes behind `bytes`, see below */
    uint64_t flags;   /* RF_TENSOR_VIEW, and others in later versions */
    /* Elements from one element to the next in each dimension, as many as n_dims. NULL: the elements lie one behind the
     * other, the last dimension fastest. Only of published models; `bytes` are then all from the first to the last
     * element. Valid until the model is detached. */
    const uint64_t *strides;
    const void *reserved[1]; /* NULL */
} rf_tensor;

/* The bytes of the tensor are also those of other tensors of the model: it is a group of the layout; or, in a published
 * model, it begins within the bytes of another. */
#define RF_TENSOR_VIEW (1u << 0)

/* A native tensor of a quantised type has zeros behind it if its rows are no multiple of 512 elements: as many bytes as
 * the blocks for the missing elements take, (512 - row % 512) / block_elements * block_bytes. So a kernel that reads
 * whole runs of 512 elements finds only zeros behind the last row. This holds on every device. */

/* Attaches to a model: maps its memory into this process, read-only if the device can do that. Nothing is copied or
 * read. The daemon does not free the memory until the model is detached or the connection closes. If the model is being
 * loaded, waits for it. The caller ends it with rf_detach(), or with rf_close().
 *
 * -ENOENT: there is no such model. -EBUSY: the model is being removed; or its memory is still mapped from before, see
 * rf_detach(), and still cannot be unmapped. -ENOTSUP: this machine has no module for its device. -ENODEV: this process
 * does not see its device. */
int rf_attach(rf_client *client, const char *name, rf_model **ret);

/* How to wait. Set `size` to sizeof(rf_attach_options), and the options that you do not use to 0. */
typedef struct rf_attach_options {
    size_t size;
    double deadline_seconds;  /* give up after so many seconds, -ETIMEDOUT; 0: never */
    rf_progress_fn *progress; /* gets the progress of the load that the call waits for; NULL: none */
    void *context;            /* passed to progress */
} rf_attach_options;

/* rf_attach() with options, which may be NULL. */
int rf_attach_with(rf_client *client, const char *name, const rf_attach_options *options, rf_model **ret);

/* rf_load() and rf_attach() in one call: the model cannot be evicted in between. -EINVAL if no_wait is set. `reply`
 * gets no descriptors. Other errors are those of rf_load() and rf_attach(); if the model was loaded and attaching
 * failed, it stays loaded. */
int rf_load_attach(rf_client *client, const char *path, const rf_load_options *options, rf_model **ret);

/* Unmaps the memory, ends the lease and frees the model. Pointers into the memory must not be used any more. model may
 * be NULL. The model is freed even if the function returns an error, with one exception: from within a function that
 * the library calls it does nothing and returns -EDEADLK. -ECONNRESET: the connection was closed, so the lease had
 * ended already.
 *
 * On a GPU it waits for all work of the device. If a stream of the device (on ROCm: of any GPU of the process) is being
 * captured into a graph, the waiting may break the capture. Then the memory stays mapped until another model on that
 * device is detached, this model is attached again, or the process ends. So detach before or after a capture. */
int rf_detach(rf_model *model);

/* Whether the daemon keeps the memory for this model: 0 if rf_reconnect() got no lease for it again, else 1. */
int rf_model_leased(const rf_model *model);

const char *rf_model_name(const rf_model *model);
/* A daemon never uses an id twice, while a name may later stand for another model. */
uint64_t rf_model_id(const rf_model *model);

/* The device that the model is on: its id, "host" or "hip:0"; its kind, "host" or "hip"; its UUID and PCI address,
 * which are the same in every process, or NULL. The UUID is what rocminfo prints ("GPU-4c6a51b5d1f2c3a7"), or what
 * nvidia-smi prints without the "GPU-" in front. */
const char *rf_model_device(const rf_model *model);
const char *rf_model_device_kind(const rf_model *model);
const char *rf_model_device_uuid(const rf_model *model);
const char *rf_model_device_pci(const rf_model *model);

/* The start of the model's memory, as of rf_tensor.data; NULL if it has no bytes. And its size in bytes. */
const void *rf_model_data(const rf_model *model);
uint64_t rf_model_bytes(const rf_model *model);

/* Copies bytes of the model's memory, on any device, to `dst` on the host. -ERANGE: not all of the bytes are inside the
 * model's memory. -EIO: the GPU failed. */
int rf_model_read(const rf_model *model, uint64_t offset, void *dst, size_t size);

/* The number of tensors. */
size_t rf_model_tensors(const rf_model *model);
/* The tensor at this index, in the order of the file. What the daemon says of a tensor is checked here, not in
 * rf_attach(), so that attaching does not take longer with more tensors. -ERANGE: there are not so many. -EPROTO: what
 * the daemon says is wrong. */
int rf_model_tensor(const rf_model *model, size_t index, rf_tensor *ret);
/* The tensor with this name. -ENOENT: there is none. -EPROTO: as above. */
int rf_model_find(const rf_model *model, const char *name, rf_tensor *ret);

/* --- metadata: the keys and values that the model's file begins with --- */

/* Types of values, numbered as in the file. */
enum rf_value_type {
    RF_U8,
    RF_I8,
    RF_U16,
    RF_I16,
    RF_U32,
    RF_I32,
    RF_F32,
    RF_BOOL,
    RF_STRING,
    RF_ARRAY,
    RF_U64,
    RF_I64,
    RF_F64
};

/* A value: of a key, or an element of an array. What it points to stands in the header, which nobody can change, and
 * lives until the model is detached; nothing in it is terminated or aligned, and text need not be UTF-8. */
typedef struct rf_value {
    uint32_t type;         /* enum rf_value_type */
    uint32_t element_type; /* of an array, RF_ARRAY if its elements are arrays; else the same as type */
    uint64_t count;        /* elements of an array; else 1 */
    const void *data;      /* a string's text; an array's first element; else the number, little-endian */
    uint64_t bytes;        /* of data */
    const char *key;       /* NULL in an element of an array */
    size_t key_size;       /* its bytes */
} rf_value;

/* The functions that take a model map the header and read the whole metadata when the first of them is called; until
 * then an attached model holds one descriptor open. They return 0, or -ENODATA: the daemon gave no header; -EPROTO: the
 * header is not valid; -ENOMEM; and what is said at each. */

/* How many keys there are. */
int rf_model_metadata_count(const rf_model *model, size_t *ret);
/* A key and its value, in the order of the file. -ERANGE. */
int rf_model_metadata_at(const rf_model *model, size_t index, rf_value *ret);
/* The value of a key. -ENOENT. */
int rf_model_metadata_find(const rf_model *model, const char *key, rf_value *ret);
/* The next element of an array. *position is 0 before the first call, and not to be changed between calls. Returns 1
 * and the element, or 0 when there is none left; -EINVAL: that is no array of this model's. */
int rf_model_metadata_next(const rf_model *model, const rf_value *array, uint64_t *position, rf_value *ret);

/* Give a value as a number of C. Return 0, or -EINVAL if the value has another type or does not fit. The first two take
 * integers of any type and RF_BOOL, the third RF_F32 and RF_F64. */
int rf_value_u64(const rf_value *value, uint64_t *ret);
int rf_value_i64(const rf_value *value, int64_t *ret);
int rf_value_f64(const rf_value *value, double *ret);

/* The file's header as it stands there: the magic, metadata and tensor infos, or a length of 8 bytes and JSON, of a
 * split model those of its first file. Lives until the model is detached. NULL, and *ret_size 0: the daemon gave none,
 * or as rf_error_message() says. */
const void *rf_model_header(const rf_model *model, size_t *ret_size);

/* --- publishing --- */

/* Memory that the daemon has given to this client, for a model that the client makes. */
typedef struct rf_creation rf_creation;

/* The offset of a tensor that the daemon places. */
#define RF_ANYWHERE UINT64_MAX

/* A tensor of a model that is to be published. */
typedef struct rf_new_tensor {
    const char *name;            /* in UTF-8; no two the same */
    const char *type;            /* "f32", "bf16", "u8", "q4_K", ...: as in rf_tensor */
    uint32_t n_dims;             /* 0 to RF_DIMS_MAX */
    uint64_t shape[RF_DIMS_MAX]; /* slowest dimension first */
    const uint64_t *strides;     /* in elements, n_dims of them; NULL: the elements lie one behind the other */
    uint64_t offset;             /* in bytes from the start of the memory; RF_ANYWHERE. Tensors may share bytes */
} rf_new_tensor;

/* Set `size` to sizeof(rf_create_options), and the options that you do not use to 0. */
typedef struct rf_create_options {
    size_t size;
    const char *key;    /* says what the memory will hold, in the publisher's own words; NULL: nothing */
    const char *device; /* NULL: "auto" */
    uint64_t bytes;     /* of the memory; 0: as many as the tensors need */
    int no_wait;        /* -EBUSY if another client is making a model with this key */
    int any_publisher;  /* a model with this key may also be that of another user, whom the daemon does not trust */
    int private_;       /* only this user sees the model and can attach to it */
    int public_;        /* every user sees it and can attach to it */
    int replace;        /* as in rf_load_options */
    double wait_for_memory_seconds;
    double deadline_seconds;  /* give up after so many seconds, -ETIMEDOUT; 0: never */
    rf_progress_fn *progress; /* or NULL */
    void *context;            /* passed to progress */
} rf_create_options;

/* Takes memory for a model that this program fills, and maps it; or attaches, if there is a model with this key. If
 * another client is making one, waits for it. One of *ret and *ret_model is set, and the other is NULL: *ret_model: the
 * model that is there, as from rf_attach(); *ret: memory, all zeros, which the caller ends with rf_publish() or
 * rf_creation_end(), before rf_close(). tensors NULL and n 0: rf_publish() is told them. options may be NULL.
 *
 * -EBADMSG: a tensor is wrong; rf_error_parameters() says which one, and why. Other errors are those of rf_load() and
 * rf_attach(). */
int rf_create(rf_client *client, const char *name, const rf_new_tensor *tensors, size_t n,
              const rf_create_options *options, rf_creation **ret, rf_model **ret_model);

/* The memory, to write to: on the host, or a device pointer. NULL: it was unmapped. Memory on a GPU is written to by
 * the program's own calls of the GPU's runtime. */
void *rf_creation_data(const rf_creation *creation);
uint64_t rf_creation_bytes(const rf_creation *creation);

/* The number that Publish of the wire takes. */
uint64_t rf_creation_id(const rf_creation *creation);

/* Where a tensor is in the memory, by its place in the list. -ERANGE. */
int rf_creation_offset(const rf_creation *creation, size_t index, uint64_t *ret);

/* Unmaps the memory; on a GPU, when its device has finished all work. rf_publish() does it too. */
void rf_creation_unmap(rf_creation *creation);

/* Set `size` to sizeof(rf_publish_options), and the options that you do not use to 0. */
typedef struct rf_publish_options {
    size_t size;
    const char *metadata;         /* whatever else to say of the model, in UTF-8, at most 1 MiB; NULL: nothing */
    const rf_new_tensor *tensors; /* if rf_create() was told none */
    size_t n_tensors;
    int pin;
    uint64_t ttl_seconds; /* 0: never */
} rf_publish_options;

/* Unmaps the memory and has it sealed: from now on it is a model like any other. Attaches to that, and frees the
 * creation. After an error the creation is still there, but unmapped: -EBUSY: another process has the memory mapped for
 * writing; -EBADMSG: a tensor, or the metadata, is wrong. -ENOENT: it has ended. options may be NULL. */
int rf_publish(rf_creation *creation, const rf_publish_options *options, rf_model **ret);

/* Ends a creation without a model, and frees it. NULL is fine. */
int rf_creation_end(rf_creation *creation);

/* For who has called Create by other means: maps the memory that a reply tells of, which is JSON text, and `fd`, the
 * descriptor that came with it; -1: none. The descriptor stays the caller's. The client need not be the one that
 * called: then only rf_creation_unmap(), rf_creation_forget() and what tells of the creation may be called. */
int rf_creation_of(rf_client *client, const char *reply, int fd, rf_creation **ret);

/* Unmaps the memory and frees the creation, without a message to the daemon. NULL is fine. */
void rf_creation_forget(rf_creation *creation);

#ifdef __cplusplus
}
#endif

#endif
