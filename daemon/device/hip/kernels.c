#include "daemon/device/hip/kernels.h"

#include "daemon/device/hip/error.h"
#include "kernels/dequant_gpu.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

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

/* The kernels were not built for this architecture, or are too new for this driver. The CPU decodes instead. */
static void go_without(struct hip_device *hip, const struct device_fault *fault)
{
    hip_kernels_unload(hip);
    snprintf(hip->device.no_kernels, sizeof(hip->device.no_kernels), "%s: %.100s (%d)", fault->call, fault->text,
             fault->code);
}

/* Looks all kernels up. Returns how many there are; *ret is one of them. After an error, or if there are none, the
 * fault describes the last lookup that failed. */
static int find_all(struct hip_device *hip, hipFunction_t *ret, struct device_fault *ret_fault)
{
    int n = 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        hipFunction_t kernel;
        hipError_t result = hipModuleGetFunction(&kernel, hip->module, names[i].name);
        const bool missing = result == hipErrorNoBinaryForGpu || result == hipErrorNotFound;
        int r = hip_result(missing ? NULL : hip, result, HIP_NAME(ModuleGetFunction), ret_fault);
        if (missing)
            continue;
        if (r < 0)
            return r;
        hip->kernels[names[i].type][names[i].form] = *ret = kernel;
        n++;
    }
    return n;
}

/* Some drivers report only at the first launch that they have no code for the device. This launch decodes 0 blocks. */
static int launch_nothing(struct hip_device *hip, hipFunction_t kernel, struct device_fault *ret_fault)
{
    uint64_t none = 0;
    void *params[] = {&hip->word, &hip->word, &none, &hip->word, &none, &hip->word};
    int r = HIP_CALL(hip, ret_fault, ModuleLaunchKernel,
                     (kernel, 1, 1, 1, DEQUANT_THREADS, 1, 1, 0, hip->streams[0], params, NULL));
    return r < 0 ? r : HIP_CALL(hip, ret_fault, StreamSynchronize, (hip->streams[0]));
}

int hip_kernels_load(struct hip_device *hip, struct device_fault *ret_fault)
{
    struct device_fault fault;
    hipModule_t module;
    hipFunction_t kernel;
    int r = HIP_CALL(hip, &fault, ModuleLoadData, (&module, rocmforge_kernels));
    if (r == 0) {
        hip->module = module;
        r = find_all(hip, &kernel, &fault);
        if (r < 0) {
            *ret_fault = fault;
            return r;
        }
        r = r == 0 ? -ENOENT : launch_nothing(hip, kernel, &fault);
    }
    if (r == -ENODEV) {
        *ret_fault = fault;
        return r;
    }
    if (r < 0)
        go_without(hip, &fault);
    return 0;
}

void hip_kernels_unload(struct hip_device *hip)
{
    if (hip->module)
        (void)!hipModuleUnload(hip->module);
    hip->module = NULL;
    memset(hip->kernels, 0, sizeof(hip->kernels));
}
