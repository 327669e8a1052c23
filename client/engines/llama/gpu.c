/* Makes a buffer type that a GPU's backend accepts as its own. ggml-cuda and ggml-hip are built from the same source.
 * They recognise their buffer types by the get_name function and by the device. They also read the context, which
 * begins with the device's index and a std::string. */
#include "client/engines/llama/backend.h"
#include "client/engines/llama/say.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The index in a name like "CUDA0" or "ROCm1"; -1 if there is none. */
static int index_of(const char *name)
{
    size_t letters = 0;
    while (isalpha((unsigned char)name[letters]))
        letters++;
    return letters > 0 && isdigit((unsigned char)name[letters]) ? atoi(name + letters) : -1;
}

/* Whether the context has the layout that is described above. */
static bool context_is_known(struct ggml_backend_buffer_type *real, int index)
{
    const char *name = real->iface.get_name(real);
    struct {
        int index;
        const char *text;
        size_t length;
    } context;
    memcpy(&context, real->context, sizeof(context));
    return context.index == index && context.text == name && context.length == strlen(name) && index_of(name) == index;
}

bool gpu_wrap(struct place *place, struct ggml_backend_device *gpu)
{
    const char *name = gpu->iface.get_name(gpu);
    struct ggml_backend_buffer_type *real = gpu->iface.get_buffer_type(gpu);
    struct ggml_backend_dev_props properties = {0};
    gpu->iface.get_props(gpu, &properties);
    if (!real || !real->context || real->device != gpu || !real->iface.get_name || !real->iface.alloc_buffer ||
        !real->iface.get_alloc_size || real->iface.is_host || !context_is_known(real, index_of(name))) {
        say("buffers of %s are not as this plug-in knows them: its weights are not shared", name);
        return false;
    }
    if (!properties.device_id || strlen(properties.device_id) >= sizeof(place->pci)) {
        say("%s does not tell its PCI address: its weights are not shared", name);
        return false;
    }
    strcpy(place->pci, properties.device_id);
    place->likeness.index = index_of(name);
    place->likeness.text = place->name;
    place->likeness.length = strlen(place->name);
    place->real = real;
    place->buft = *real; /* the real buffer type's functions answer for sizes and alignment */
    place->buft.context = &place->likeness;
    place->buft.iface.alloc_buffer = buffer_alloc;
#if GGML_API_VERSION >= 3
    place->buft.iface.alloc_buffer_n = NULL;
    place->buft.iface.get_alloc_size_n = NULL;
#endif
    return true;
}
