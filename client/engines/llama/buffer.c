/* Buffers whose tensors point to resident bytes.
 *
 * An engine allocates one buffer for all tensors of a buffer type, and gives each tensor an address in it. Then it sets
 * each tensor to bytes of the file, which it has mapped. Here these addresses are placeholders that cannot be read.
 * What a tensor gets is decided when the engine sets it. If the bytes come from a resident model's file, and name,
 * type, shape and size are equal, tensor->data is changed to point to the resident bytes, and nothing is copied.
 * Otherwise the tensor gets memory of its own: on the host the placeholder becomes real memory, on a GPU a new buffer
 * is allocated. So a tensor never has other bytes than the engine set.
 *
 * For each model an engine allocates and sets tensors in one thread at a time. It may load several models at once, so
 * one lock protects everything here. */
#include "client/engines/llama/backend.h"
#include "client/engines/llama/say.h"
#include "client/engines/llama/weights.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ALIKE_MAX   3u  /* so many tensors that are not shared are named one by one */
#define SHELL_BYTES 256 /* of the buffer of shell_of(); its own bytes are not used */

/* The memory of a tensor that is not shared. */
struct own {
    struct own *next;
    const struct ggml_tensor *tensor;
    struct ggml_backend_buffer *buffer; /* of the real device; NULL on the host */
    void *pages;                        /* on the host, outside the placeholder; NULL: the placeholder's own pages */
    size_t size;                        /* of the pages */
};

struct buffer {
    struct place *place;
    struct weights *weights;
    unsigned char *base; /* the placeholder: address space without memory */
    size_t size;
    struct own *own;
    struct ggml_backend_buffer *shell; /* a small real buffer, see shell_of(); NULL: not made yet */
    size_t n_tensors;                  /* that the engine has placed here, without views */
    size_t n_shared, n_own;            /* those of them that it has set */
    uint64_t shared_bytes;
    double attach_ms; /* what finding, loading and attaching took */
    bool reported;
    bool advised; /* the kernel was told that the engine's mapping is not read at random */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool on_host(const struct buffer *buffer)
{
    return !buffer->place->pci[0];
}

static size_t bytes_of(const struct buffer *buffer, const struct ggml_tensor *tensor)
{
    return buffer->place->engine->nbytes(tensor);
}

static struct ggml_tensor *root_of(const struct ggml_tensor *tensor)
{
    return tensor->view_src ? tensor->view_src : (struct ggml_tensor *)tensor;
}

/* Where a tensor's bytes are now. The address in a view may be from before its tensor became shared. */
static void *address_of(const struct ggml_tensor *tensor)
{
    return tensor->view_src ? (unsigned char *)tensor->view_src->data + tensor->view_offs : tensor->data;
}

static size_t padded_bytes(const struct buffer *buffer, const struct ggml_tensor *tensor)
{
    struct ggml_backend_buffer_type *real = buffer->place->real;
    return real->iface.get_alloc_size ? real->iface.get_alloc_size(real, tensor) : bytes_of(buffer, tensor);
}

/* --- what cannot be reported to the engine --- */

/* Ends the process, as ggml itself does: this interface has no way to report an error here, and the engine would
 * compute wrong results. */
static _Noreturn void no_memory(const struct ggml_tensor *tensor)
{
    say("no memory for %s: the engine is ended, because it would go on with wrong weights", tensor->name);
    abort();
}

/* --- memory of a tensor's own --- */

static struct own *own_find(const struct buffer *buffer, const struct ggml_tensor *tensor)
{
    struct own *own = buffer->own;
    while (own && own->tensor != tensor)
        own = own->next;
    return own;
}

static struct own *own_add(struct buffer *buffer, const struct ggml_tensor *tensor)
{
    struct own *own = calloc(1, sizeof(*own));
    if (!own)
        no_memory(tensor);
    *own = (struct own){.next = buffer->own, .tensor = tensor};
    buffer->own = own;
    buffer->n_own++;
    return own;
}

/* With ROCMFORGE_STRICT=1 no tensor may have its own memory. The interface has no way to refuse one here, so the
 * process ends. */
static void own_tell(const struct buffer *buffer, const struct ggml_tensor *tensor, const char *reason)
{
    if (buffer->n_own < ALIKE_MAX || say_strict())
        say("%s is not shared: %s", tensor->name, reason);
    else if (buffer->n_own == ALIKE_MAX)
        say("others are not shared either");
    if (say_strict()) {
        say("ROCMFORGE_STRICT is set: the engine is ended");
        _exit(EXIT_FAILURE);
    }
}

/* Makes the tensor's pages in the placeholder readable and writable. They hold zeros at first. */
static void own_make_host(struct buffer *buffer, struct ggml_tensor *tensor)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)tensor->data & ~(page - 1);
    uintptr_t end = ((uintptr_t)tensor->data + bytes_of(buffer, tensor) + page - 1) & ~(page - 1);
    if (mprotect((void *)start, end - start, PROT_READ | PROT_WRITE) < 0)
        no_memory(tensor);
    own_add(buffer, tensor);
}

static void own_make_gpu(struct buffer *buffer, struct ggml_tensor *tensor)
{
    struct ggml_backend_buffer_type *real = buffer->place->real;
    struct ggml_backend_buffer *memory = real->iface.alloc_buffer(real, padded_bytes(buffer, tensor));
    if (!memory)
        no_memory(tensor);
    own_add(buffer, tensor)->buffer = memory;
    tensor->data = memory->iface.get_base(memory);
    if (memory->iface.init_tensor)
        memory->iface.init_tensor(memory, tensor); /* writes zeros after the rows */
}

static void own_make(struct buffer *buffer, struct ggml_tensor *tensor, const char *reason)
{
    own_tell(buffer, tensor, reason);
    if (on_host(buffer))
        own_make_host(buffer, tensor);
    else
        own_make_gpu(buffer, tensor);
}

static void own_write(struct buffer *buffer, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size)
{
    struct ggml_backend_buffer *memory = own_find(buffer, root_of(tensor))->buffer;
    if (memory)
        memory->iface.set_tensor(memory, tensor, data, offset, size);
    else
        memcpy((unsigned char *)tensor->data + offset, data, size);
}

static void own_free(struct buffer *buffer, struct own *own)
{
    if (own->buffer)
        buffer->place->engine->buffer_free(own->buffer);
    if (own->pages)
        munmap(own->pages, own->size);
    free(own);
}

/* --- reading --- */

/* A real buffer of the device. Its functions can read any memory of the device, because they use only the tensor's
 * address. NULL: no memory. */
static struct ggml_backend_buffer *shell_of(struct buffer *buffer)
{
    struct ggml_backend_buffer_type *real = buffer->place->real;
    if (!buffer->shell)
        buffer->shell = real->iface.alloc_buffer(real, SHELL_BYTES);
    return buffer->shell;
}

static void read_tensor(struct buffer *buffer, const struct ggml_tensor *tensor, void *data, size_t offset, size_t size)
{
    struct ggml_tensor at = *tensor;
    at.data = address_of(tensor);
    if (on_host(buffer)) {
        memcpy(data, (const unsigned char *)at.data + offset, size);
        return;
    }
    struct ggml_backend_buffer *shell = shell_of(buffer);
    if (!shell)
        no_memory(tensor);
    shell->iface.get_tensor(shell, &at, data, offset, size);
}

/* A tensor that was never set has no bytes. An engine that reads one would go on with whatever it got. */
static void buffer_get_tensor(struct ggml_backend_buffer *ggml, const struct ggml_tensor *tensor, void *data,
                              size_t offset, size_t size)
{
    struct buffer *buffer = ggml->context;
    pthread_mutex_lock(&lock);
    if (!weights_has(buffer->weights, root_of(tensor)->data) && !own_find(buffer, root_of(tensor))) {
        say("%s is read before it is set: the engine is ended, because this tensor has no bytes", tensor->name);
        abort();
    }
    read_tensor(buffer, tensor, data, offset, size);
    pthread_mutex_unlock(&lock);
}

/* --- setting --- */

/* For a shared tensor that the engine writes to: copies the resident bytes into the tensor's own memory first, because
 * other processes use the resident bytes too. */
static void own_take_over(struct buffer *buffer, struct ggml_tensor *tensor)
{
    size_t size = bytes_of(buffer, tensor);
    void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        no_memory(tensor);
    read_tensor(buffer, tensor, copy, 0, size);
    own_tell(buffer, tensor, "the engine changes it");
    buffer->n_shared--;
    buffer->shared_bytes -= size;
    if (on_host(buffer)) {
        struct own *own = own_add(buffer, tensor);
        own->pages = tensor->data = copy;
        own->size = size;
    } else {
        own_make_gpu(buffer, tensor);
        own_write(buffer, tensor, copy, 0, size);
        munmap(copy, size);
    }
}

static struct weights_tensor description(const struct buffer *buffer, const struct ggml_tensor *tensor,
                                         const void *data)
{
    size_t bytes = bytes_of(buffer, tensor);
    return (struct weights_tensor){
        .name = tensor->name,
        .type = (uint32_t)tensor->type,
        .shape = {tensor->ne[0], tensor->ne[1], tensor->ne[2], tensor->ne[3]},
        .bytes = bytes,
        .padding = on_host(buffer) ? 0 : padded_bytes(buffer, tensor) - bytes,
        .data = data,
    };
}

/* The engine may have advised the kernel that its mapping is read at random, see backend.c. Now its bytes are needed,
 * so take this advice back. */
static void advise(struct buffer *buffer)
{
    const struct open_files *files = weights_files(buffer->weights);
    for (size_t i = 0; !buffer->advised && i < files->n_files; i++)
        open_files_advise(files, i, false);
    buffer->advised = true;
}

/* Makes a tensor point to resident bytes, if these are the bytes that the engine sets the whole tensor to. */
static bool share(struct buffer *buffer, struct ggml_tensor *tensor, const void *data, const char **reason)
{
    const struct weights_tensor want = description(buffer, tensor, data);
    const void *resident;
    if (weights_find(buffer->weights, &want, &resident, reason) < 0)
        return false;
    tensor->data = (void *)resident;
    buffer->n_shared++;
    buffer->shared_bytes += want.bytes;
    return true;
}

/* Whether the engine sets a shared tensor to the bytes that it has already. */
static bool is_same(const struct buffer *buffer, const struct ggml_tensor *tensor, const void *data)
{
    const struct weights_tensor want = description(buffer, tensor, data);
    const void *resident;
    const char *reason;
    return weights_find(buffer->weights, &want, &resident, &reason) == 0 && resident == tensor->data;
}

/* Says what is shared, once the engine has set all tensors: before, it is not known. */
static void report(struct buffer *buffer)
{
    if (buffer->reported || buffer->n_shared + buffer->n_own < buffer->n_tensors)
        return;
    buffer->reported = true;
    if (buffer->n_shared == 0)
        say("not shared: none of the engine's %zu tensors is equal to one of %s", buffer->n_tensors,
            weights_text(buffer->weights));
    else
        say("shared with other processes: %zu of %zu tensors, %.1f MB of %s, attached in %.1f ms%s", buffer->n_shared,
            buffer->n_tensors, (double)buffer->shared_bytes / 1e6, weights_text(buffer->weights), buffer->attach_ms,
            on_host(buffer) ? "; computed as with --no-repack" : "");
}

static void set_tensor(struct buffer *buffer, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size)
{
    struct ggml_tensor *root = root_of(tensor);
    const char *reason = "it is set in parts";
    bool whole = root == tensor && offset == 0 && size == bytes_of(buffer, tensor);
    if (weights_has(buffer->weights, root->data)) {
        if (whole && is_same(buffer, tensor, data))
            return;
        own_take_over(buffer, root);
    } else if (!own_find(buffer, root)) {
        if (whole && share(buffer, tensor, data, &reason))
            return;
        advise(buffer);
        own_make(buffer, root, reason);
    }
    tensor->data = address_of(tensor);
    own_write(buffer, tensor, data, offset, size);
}

static void buffer_set_tensor(struct ggml_backend_buffer *ggml, struct ggml_tensor *tensor, const void *data,
                              size_t offset, size_t size)
{
    pthread_mutex_lock(&lock);
    set_tensor(ggml->context, tensor, data, offset, size);
    report(ggml->context);
    pthread_mutex_unlock(&lock);
}

static void buffer_memset_tensor(struct ggml_backend_buffer *ggml, struct ggml_tensor *tensor, uint8_t value,
                                 size_t offset, size_t size)
{
    void *bytes = malloc(size);
    if (!bytes)
        no_memory(tensor);
    memset(bytes, value, size);
    buffer_set_tensor(ggml, tensor, bytes, offset, size);
    free(bytes);
}

/* --- the buffer --- */

static void *buffer_get_base(struct ggml_backend_buffer *ggml)
{
    return ((struct buffer *)ggml->context)->base;
}

/* With ROCMFORGE_STRICT=1 a tensor that is not resident is refused here, where the engine can be told so. */
static int buffer_init_tensor(struct ggml_backend_buffer *ggml, struct ggml_tensor *tensor)
{
    struct buffer *buffer = ggml->context;
    if (tensor->view_src)
        return GGML_STATUS_SUCCESS;
    const char *reason;
    const void *resident;
    int r = 0;
    pthread_mutex_lock(&lock);
    buffer->n_tensors++;
    if (say_strict()) {
        const struct weights_tensor want = description(buffer, tensor, NULL);
        r = weights_find(buffer->weights, &want, &resident, &reason);
    }
    if (r < 0)
        say("%s cannot be shared, and ROCMFORGE_STRICT is set: %s", tensor->name, reason);
    pthread_mutex_unlock(&lock);
    return r < 0 ? GGML_STATUS_FAILED : GGML_STATUS_SUCCESS;
}

static bool buffer_cpy_tensor(struct ggml_backend_buffer *ggml, const struct ggml_tensor *src, struct ggml_tensor *dst)
{
    (void)ggml, (void)src, (void)dst;
    return false; /* then ggml copies with get_tensor and set_tensor */
}

static void buffer_clear(struct ggml_backend_buffer *ggml, uint8_t value)
{
    (void)ggml, (void)value; /* a tensor that was not set has no memory */
}

static void buffer_free(struct ggml_backend_buffer *ggml)
{
    struct buffer *buffer = ggml->context;
    pthread_mutex_lock(&lock);
    while (buffer->own) {
        struct own *own = buffer->own;
        buffer->own = own->next;
        own_free(buffer, own);
    }
    if (buffer->shell)
        buffer->place->engine->buffer_free(buffer->shell);
    weights_close(buffer->weights);
    munmap(buffer->base, buffer->size);
    free(buffer);
    pthread_mutex_unlock(&lock);
}

static const struct ggml_backend_buffer_i buffer_interface = {
    .free_buffer = buffer_free,
    .get_base = buffer_get_base,
    .init_tensor = buffer_init_tensor,
    .memset_tensor = buffer_memset_tensor,
    .set_tensor = buffer_set_tensor,
    .get_tensor = buffer_get_tensor,
    .cpy_tensor = buffer_cpy_tensor,
    .clear = buffer_clear,
};

/* The buffer if weights cannot be shared: memory of the real device. */
static struct ggml_backend_buffer *alloc_ordinary(const struct place *place, size_t size, enum weights_state state)
{
    if (state == WEIGHTS_OTHER && say_strict()) {
        say("ROCMFORGE_STRICT is set: refused");
        return NULL;
    }
    if (state == WEIGHTS_OTHER)
        say("loading in the ordinary way: these weights are this process's own");
    struct open_files *files = state == WEIGHTS_OTHER ? malloc(sizeof(*files)) : NULL;
    if (files && open_files_read(files) == 0)
        for (size_t i = 0; i < files->n_files; i++)
            open_files_advise(files, i, true);
    free(files);
    return place->real->iface.alloc_buffer(place->real, size);
}

/* NULL: no memory. Then the weights are closed. */
static struct ggml_backend_buffer *alloc_shared(struct place *place, size_t size, struct weights *weights,
                                                double attach_ms)
{
    struct buffer *buffer = calloc(1, sizeof(*buffer));
    void *base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct ggml_backend_buffer *made = NULL;
    if (buffer && base != MAP_FAILED) {
        *buffer =
            (struct buffer){.place = place, .weights = weights, .base = base, .size = size, .attach_ms = attach_ms};
        made = place->engine->buffer_init(&place->buft, buffer_interface, buffer, size);
    }
    if (made)
        return made;
    say("no address space for %.1f MB of weights: is the process's memory limited (ulimit -v)?", (double)size / 1e6);
    if (base != MAP_FAILED)
        munmap(base, size);
    free(buffer);
    weights_close(weights);
    return NULL;
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

struct ggml_backend_buffer *buffer_alloc(struct ggml_backend_buffer_type *buft, size_t size)
{
    struct place *place = (struct place *)((char *)buft - offsetof(struct place, buft));
    struct weights *weights = NULL;
    pthread_mutex_lock(&lock);
    const double began = now_ms();
    enum weights_state state = weights_open(place->pci[0] ? place->pci : NULL, &weights);
    struct ggml_backend_buffer *buffer = state == WEIGHTS_READY ? alloc_shared(place, size, weights, now_ms() - began)
                                                                : alloc_ordinary(place, size, state);
    pthread_mutex_unlock(&lock);
    return buffer;
}
