/* Any bytes are valid blocks: every instruction set of this machine decodes them as the reference does, and none writes
 * beside its output or reads outside of its input.
 *
 * Of the input, the first byte picks a type (of those that decode, in order of their ids), the second a form, and the
 * third and the fourth say how far the blocks and the output are from an address that is a multiple of 64. The rest are
 * blocks. tests/fuzz/make_seeds.py writes such inputs. */
#include "kernels/blocks.h"
#include "kernels/dequant_isa.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER = 4, ALIGNMENT = 64, UNTOUCHED = 0xa5 };

static const uint8_t types[] = {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               id,
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) id,
#include "kernels/types.def"
};

/* Equal but for the bits of NaN, which are up to the processor where they are computed and not copied. */
static bool same(uint32_t id, const uint8_t *a, const uint8_t *b, size_t count, enum form form)
{
    const bool copied = id == TYPE_ID_f32 || id == TYPE_ID_f16 || id == TYPE_ID_bf16;
    for (size_t i = 0; i < count; i++) {
        uint32_t x = form == FORM_F32 ? block_u32(a + 4 * i) : block_u16(a + 2 * i);
        uint32_t y = form == FORM_F32 ? block_u32(b + 4 * i) : block_u16(b + 2 * i);
        const uint32_t infinity = form == FORM_F32 ? 0x7f800000 : form == FORM_F16 ? 0x7c00 : 0x7f80;
        const uint32_t magnitude = form == FORM_F32 ? 0x7fffffff : 0x7fff;
        if (x != y && (copied || !((x & magnitude) > infinity && (y & magnitude) > infinity)))
            return false;
    }
    return true;
}

/* Ends where the memory ends, so that the sanitizer sees what goes beyond. Freed as it is. */
static uint8_t *allocate(size_t size)
{
    void *p;
    if (posix_memalign(&p, ALIGNMENT, size ? size : 1) != 0)
        abort();
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEADER)
        return -1;
    const struct tensor_type *type = tensor_type_find(types[data[0] % sizeof types]);
    const enum form form = (enum form)(FORM_F32 + data[1] % (FORM_COUNT - FORM_F32));
    const size_t src_shift = data[2] % ALIGNMENT, dst_shift = data[3] % ALIGNMENT;
    const size_t blocks = (size - HEADER) / type->block_bytes, src_size = blocks * type->block_bytes;
    const size_t count = blocks * type->block_elements, dst_size = count * form_element_bytes(form);
    uint8_t *src = allocate(src_shift + src_size);
    uint8_t *want = allocate(dst_size);
    uint8_t *got = allocate(dst_shift + dst_size);
    memcpy(src + src_shift, data + HEADER, src_size);
    const uint64_t overflows = dequant_find_reference(type->id, form)(want, src + src_shift, blocks);
    for (size_t i = 0; i < dequant_isa_count; i++) {
        dequant_fn *decode = (*dequant_isas[i].table)[type->id][form];
        if (!decode || !dequant_isas[i].runs_here())
            continue;
        memset(got, UNTOUCHED, dst_shift + dst_size);
        if (decode(got + dst_shift, src + src_shift, blocks) != overflows ||
            !same(type->id, got + dst_shift, want, count, form))
            abort();
        for (size_t k = 0; k < dst_shift; k++)
            if (got[k] != UNTOUCHED)
                abort();
    }
    free(src);
    free(want);
    free(got);
    return 0;
}
