/* Any bytes are valid blocks: the first byte of the input picks a type, the second a form, and the rest are decoded, in
 * buffers of exactly the size, by every instruction set of this machine. They must agree with the reference. */
#include "kernels/blocks.h"
#include "kernels/dequant_isa.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Equal but for the bits of NaN, which are up to the processor where they are computed. */
static bool same(const uint8_t *a, const uint8_t *b, size_t count, enum form form)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t x = form == FORM_F32 ? block_u32(a + 4 * i) : block_u16(a + 2 * i);
        uint32_t y = form == FORM_F32 ? block_u32(b + 4 * i) : block_u16(b + 2 * i);
        const uint32_t infinity = form == FORM_F32 ? 0x7f800000 : form == FORM_F16 ? 0x7c00 : 0x7f80;
        const uint32_t magnitude = form == FORM_F32 ? 0x7fffffff : 0x7fff;
        if (x != y && !((x & magnitude) > infinity && (y & magnitude) > infinity))
            return false;
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return -1;
    const uint32_t id = data[0];
    const enum form form = (enum form)(data[1] % (FORM_COUNT + 1));
    dequant_fn *reference = dequant_find_reference(id, form);
    if (!!reference != !!dequant_find(id, form))
        abort();
    if (!reference)
        return -1;
    const struct tensor_type *type = tensor_type_find(id);
    const size_t blocks = (size - 2) / type->block_bytes;
    const size_t count = blocks * type->block_elements;
    uint8_t *src = malloc(blocks * type->block_bytes);
    uint8_t *want = malloc(count * form_element_bytes(form));
    uint8_t *got = malloc(count * form_element_bytes(form));
    if (blocks > 0) {
        memcpy(src, data + 2, blocks * type->block_bytes);
        const uint64_t overflows = reference(want, src, blocks);
        for (size_t i = 0; i < dequant_isa_count; i++) {
            if (!dequant_isas[i].runs_here() || !(*dequant_isas[i].table)[id][form])
                continue;
            if ((*dequant_isas[i].table)[id][form](got, src, blocks) != overflows || !same(got, want, count, form))
                abort();
        }
    }
    free(src);
    free(want);
    free(got);
    return 0;
}
