#include "daemon/device_hip.h"

#include <errno.h>
#include <stdio.h>

/* The code object (hip) or fat binary (cuda) of kernels/dequant.hip, embedded by kernels/gpu/meson.build. */
extern const unsigned char rocmforge_kernels[];

struct kernel_name {
    unsigned type;
    enum form form;
    const char *name;
};

static const struct kernel_name names[] = {
#define KERNELS(id, ident)                                                                                             \
    {id, FORM_F32, "dequant_" #ident "_f32"}, {id, FORM_F16, "dequant_" #ident "_f16"},                                \
        {id, FORM_BF16, "dequant_" #ident "_bf16"},
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               KERNELS(id, ident)
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) KERNELS(id, ident)
#include "kernels/types.def"
};

#define TYPE_PLAIN_DEF(id, ident, name, bytes)               _Static_assert(id < HIP_TYPES, "raise HIP_TYPES");
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) _Static_assert(id < HIP_TYPES, "raise HIP_TYPES");
#include "kernels/types.def"

/* Not built for this architecture, or too new for this driver: the CPU can do what they do. */
static void go_without(struct hip_device *hip, const struct device_fault *fault)
{
    hip->module = NULL;
    snprintf(hip->device.no_kernels, sizeof(hip->device.no_kernels), "%s: %.100s (%d)", fault->call, fault->text,
             fault->code);
}

int hip_kernels_load(struct hip_device *hip, struct device_fault *ret_fault)
{
    struct device_fault fault;
    int r = HIP_CALL(hip, &fault, ModuleLoadData, (&hip->module, rocmforge_kernels));
    if (r == -ENODEV) {
        *ret_fault = fault;
        hip->module = NULL;
        return r;
    }
    if (r < 0) {
        go_without(hip, &fault);
        return 0;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        hipFunction_t *kernel = &hip->kernels[names[i].type][names[i].form];
        hipError_t result = hipModuleGetFunction(kernel, hip->module, names[i].name);
        if (result == hipErrorNoBinaryForGpu || result == hipErrorNotFound) {
            *kernel = NULL;
            continue;
        }
        r = hip_result(hip, result, HIP_NAME(ModuleGetFunction), ret_fault);
        if (r < 0) {
            *kernel = NULL;
            return r;
        }
    }
    return 0;
}

void hip_kernels_unload(struct hip_device *hip)
{
    if (hip->module)
        (void)!hipModuleUnload(hip->module);
    hip->module = NULL;
}
