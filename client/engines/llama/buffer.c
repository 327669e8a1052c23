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
#include <unistd.h>

#define ALIKE_MAX 3u /* so many tensors that are not shared are named one by one */

/* A tensor on a GPU that is not shared and has its own memory. */
struct own {
    struct own *next;
    const struct ggml_tensor *tensor;
    struct ggml_backend_buffer *buffer; /* of the real device */
};

struct buffer {
    struct place *place;
    struct weights *weights;
    unsigned char *base; /* the placeholder: address space without memory */
    size_t size;
    struct own *own;
    struct ggml_backend_buffer *shell; /* a small real buffer, see shell_of(); NULL: not made yet */
    size_t n_own;
    size_t own_bytes;
    bool advised; /* the kernel was told that the engine's mapping is not read at random */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool on_host(const struct buffer *buffer)
{
    return !buffer->place->pci[0];
}

static bool is_placeholder(const struct buffer *buffer, const void *data)
{
    return (const unsigned char *)data >= buffer->base && (const unsigned char *)data < buffer->base + buffer->size;
}

static struct ggml_tensor *root_of(const struct ggml_tensor *tensor)
{
    return tensor->view_src ? tensor->view_src : (struct ggml_tensor *)tensor;
}

static size_t padded_bytes(const struct buffer *buffer, const struct ggml_tensor *tensor)
{
    struct ggml_backend_buffer_type *real = buffer->place->real;
    return real->iface.get_alloc_size ? real->iface.get_alloc_size(real, tensor)
                                      : buffer->place->engine->nbytes(tensor);
}

/* --- memory of a tensor's own --- */

static struct own *own_find(const struct buffer *buffer, const struct ggml_tensor *tensor)
{
    struct own *own = buffer->own;
    while (own && own->tensor != tensor)
        own = own->next;
    return own;
}

static void own_tell(struct buffer *buffer, const struct ggml_tensor *tensor, const char *reason)
{
    buffer->n_own++;
    buffer->own_bytes += buffer->place->engine->nbytes(tensor);
    if (buffer->n_own <= ALIKE_MAX)
        say("%s is not shared: %s", tensor->name, reason);
    else if (buffer->n_own == ALIKE_MAX + 1)
        say("others are not shared either");
}

/* Makes the tensor's pages readable and writable. They hold zeros at first. */
static bool own_make_host(struct buffer *buffer, struct ggml_tensor *tensor)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)tensor->data & ~(page - 1);
    uintptr_t end = ((uintptr_t)tensor->data + buffer->place->engine->nbytes(tensor) + page - 1) & ~(page - 1);
    return mprotect((void *)start, end - start, PROT_READ | PROT_WRITE) == 0;
}

static bool own_make_gpu(struct buffer *buffer, struct ggml_tensor *tensor)
{
    struct ggml_backend_buffer_type *real = buffer->place->real;
    struct own *own = calloc(1, sizeof(*own));
    struct ggml_backend_buffer *memory = own ? real->iface.alloc_buffer(real, padded_bytes(buffer, tensor)) : NULL;
    if (!memory) {
        free(own);
        return false;
    }
    *own = (struct own){.next = buffer->own, .tensor = tensor, .buffer = memory};
    buffer->own = own;
    tensor->data = memory->iface.get_base(memory);
    if (memory->iface.init_tensor)
        memory->iface.init_tensor(memory, tensor); /* writes zeros after the rows */
    return true;
}

/* Gives the tensor its own memory. If there is no memory the process ends, as in ggml itself: this interface cannot
 * report an error to the engine, and the engine would compute wrong results. */
static void own_make(struct buffer *buffer, struct ggml_tensor *tensor, const char *reason)
{
    own_tell(buffer, tensor, reason);
    if (on_host(buffer) ? own_make_host(buffer, tensor) : own_make_gpu(buffer, tensor))
        return;
    say("no memory for %s", tensor->name);
    abort();
}

static void own_write(struct buffer *buffer, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size)
{
    if (on_host(buffer)) {
        memcpy((unsigned char *)tensor->data + offset, data, size);
        return;
    }
    struct ggml_backend_buffer *memory = own_find(buffer, root_of(tensor))->buffer;
    memory->iface.set_tensor(memory, tensor, data, offset, size);
}

/* --- reading --- */

/* A real buffer of the device. Its functions can read any memory of the device, because they use only the tensor's
 * address. */
static struct ggml_backend_buffer *shell_of(struct buffer *buffer)
{
    struct ggml_backend_buffer_type *real = buffer->place->real;
    if (!buffer->shell)
        buffer->shell = real->iface.alloc_buffer(real, 256);
    return buffer->shell;
}

static void read_tensor(struct buffer *buffer, const struct ggml_tensor *tensor, void *data, size_t offset, size_t size)
{
    struct ggml_backend_buffer *shell = on_host(buffer) ? NULL : shell_of(buffer);
    if (shell)
        shell->iface.get_tensor(shell, tensor, data, offset, size);
    else if (on_host(buffer))
        memcpy(data, (const unsigned char *)tensor->data + offset, size);
    else
        memset(data, 0, size);
}

static void buffer_get_tensor(struct ggml_backend_buffer *ggml, const struct ggml_tensor *tensor, void *data,
                              size_t offset, size_t size)
{
    struct buffer *buffer = ggml->context;
    pthread_mutex_lock(&lock);
    /* A tensor that was never set has no memory yet. */
    if (on_host(buffer) && is_placeholder(buffer, tensor->data))
        own_make(buffer, root_of(tensor), "it was read before it was set");
    read_tensor(buffer, tensor, data, offset, size);
    pthread_mutex_unlock(&lock);
}

/* --- setting --- */

/* For a shared tensor that the engine writes to: copies the resident bytes into the tensor's own memory first, because
 * other processes use the resident bytes too. */
static void own_take_over(struct buffer *buffer, struct ggml_tensor *tensor)
{
    size_t size = buffer->place->engine->nbytes(tensor);
    void *copy = malloc(size);
    if (!copy) {
        say("no memory for %s", tensor->name);
        abort();
    }
    read_tensor(buffer, tensor, copy, 0, size);
    if (on_host(buffer)) {
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            say("no memory for %s", tensor->name);
            abort();
        }
        own_tell(buffer, tensor, "the engine changes it");
        tensor->data = memory; /* never freed: engines do not write to weights, so this is rare */
    } else
        own_make(buffer, tensor, "the engine changes it");
    own_write(buffer, tensor, copy, 0, size);
    free(copy);
}

static struct weights_tensor description(const struct buffer *buffer, const struct ggml_tensor *tensor,
                                         const void *data)
{
    size_t bytes = buffer->place->engine->nbytes(tensor);
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
    return true;
}

static void set_tensor(struct buffer *buffer, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size)
{
    struct ggml_tensor *root = root_of(tensor);
    const char *reason = "it is set in parts";
    bool whole = root == tensor && offset == 0 && size == buffer->place->engine->nbytes(tensor);
    if (weights_has(buffer->weights, root->data)) {
        const struct weights_tensor want = description(buffer, tensor, data);
        const void *resident;
        if (whole && weights_find(buffer->weights, &want, &resident, &reason) == 0 && resident == tensor->data)
            return; /* set to the same bytes again */
        ptrdiff_t inside = (unsigned char *)tensor->data - (unsigned char *)root->data;
        own_take_over(buffer, root);
        tensor->data = (unsigned char *)root->data + inside;
    } else if (is_placeholder(buffer, root->data) && !own_find(buffer, root)) {
        if (whole && share(buffer, tensor, data, &reason))
            return;
        advise(buffer);
        ptrdiff_t inside = (unsigned char *)tensor->data - (unsigned char *)root->data;
        own_make(buffer, root, reason);
        tensor->data = (unsigned char *)root->data + inside;
    }
    own_write(buffer, tensor, data, offset, size);
}

static void buffer_set_tensor(struct ggml_backend_buffer *ggml, struct ggml_tensor *tensor, const void *data,
                              size_t offset, size_t size)
{
    pthread_mutex_lock(&lock);
    set_tensor(ggml->context, tensor, data, offset, size);
    pthread_mutex_unlock(&lock);
}

static void buffer_memset_tensor(struct ggml_backend_buffer *ggml, struct ggml_tensor *tensor, uint8_t value,
                                 size_t offset, size_t size)
{
    void *bytes = malloc(size);
    if (!bytes) {
        say("no memory for %s", tensor->name);
        abort();
    }
    memset(bytes, value, size);
    buffer_set_tensor(ggml, tensor, bytes, offset, size);
    free(bytes);
}

/* --- the buffer --- */

static void *buffer_get_base(struct ggml_backend_buffer *ggml)
{
    return ((struct buffer *)ggml->context)->base;
}

/* With ROCMFORGE_STRICT=1 a tensor that is not resident is refused here, because later calls cannot report an error. */
static int buffer_init_tensor(struct ggml_backend_buffer *ggml, struct ggml_tensor *tensor)
{
    struct buffer *buffer = ggml->context;
    if (tensor->view_src || !say_strict())
        return GGML_STATUS_SUCCESS;
    const char *reason;
    const void *resident;
    pthread_mutex_lock(&lock);
    const struct weights_tensor want = description(buffer, tensor, NULL);
    int r = weights_find(buffer->weights, &want, &resident, &reason);
    if (r < 0)
        say("%s cannot be shared: %s", tensor->name, reason);
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
        buffer->place->engine->buffer_free(own->buffer);
        free(own);
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

static struct ggml_backend_buffer *alloc_shared(struct place *place, size_t size, struct weights *weights)
{
    struct buffer *buffer = calloc(1, sizeof(*buffer));
    void *base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!buffer || base == MAP_FAILED) {
        if (base != MAP_FAILED)
            munmap(base, size);
        free(buffer);
        weights_close(weights);
        return NULL;
    }
    *buffer = (struct buffer){.place = place, .weights = weights, .base = base, .size = size};
    say("shared with other processes: %s", weights_text(weights));
    return place->engine->buffer_init(&place->buft, buffer_interface, buffer, size);
}

struct ggml_backend_buffer *buffer_alloc(struct ggml_backend_buffer_type *buft, size_t size)
{
    struct place *place = (struct place *)((char *)buft - offsetof(struct place, buft));
    struct weights *weights = NULL;
    pthread_mutex_lock(&lock);
    enum weights_state state = weights_open(place->pci[0] ? place->pci : NULL, &weights);
    struct ggml_backend_buffer *buffer =
        state == WEIGHTS_READY ? alloc_shared(place, size, weights) : alloc_ordinary(place, size, state);
    pthread_mutex_unlock(&lock);
    return buffer;
}
