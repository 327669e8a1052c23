/* What an attached model's file says of itself. */
#include "client/attached.h"
#include "client/error.h"
#include "client/metadata.h"
#include "client/sealed.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Maps the header, unless that was done: most who attach never ask for it. */
static int model_map_header(rf_model *model)
{
    if (model->header)
        return 0;
    if (model->header_fd < 0)
        return client_fail(model->client, -ENODATA, "the daemon gave no header of the file");
    int r = sealed_map_whole(model->header_fd, &model->header, &model->header_bytes);
    if (r == -EPERM || r == -EMSGSIZE)
        return client_fail(model->client, -EPROTO, "the daemon gave a header that is %s",
                           r == -EPERM ? "not sealed" : "empty");
    if (r < 0)
        return client_fail(model->client, r, "mapping the header failed: %s", strerror(-r));
    close(model->header_fd);
    model->header_fd = -1;
    return 0;
}

/* Reads it, unless that was done. */
static int model_read_metadata(const rf_model *const_model, const struct metadata **ret)
{
    rf_model *model = (rf_model *)const_model; /* what it caches changes nothing that the caller sees */
    int r = model_map_header(model);
    if (r < 0)
        return r;
    if (!model->metadata)
        r = metadata_read(model->header, model->header_bytes, &model->metadata);
    if (r == -ENOMEM)
        return client_fail(model->client, r, "no memory for the metadata");
    if (r < 0)
        return client_fail(model->client, -EPROTO, "the daemon gave a header that is not valid");
    *ret = model->metadata;
    return 0;
}

int rf_model_metadata_count(const rf_model *model, size_t *ret)
{
    const struct metadata *metadata = NULL;
    int r = model_read_metadata(model, &metadata);
    if (r == 0)
        *ret = metadata_count(metadata);
    return r;
}

int rf_model_metadata_at(const rf_model *model, size_t index, rf_value *ret)
{
    const struct metadata *metadata = NULL;
    int r = model_read_metadata(model, &metadata);
    if (r < 0)
        return r;
    if (index >= metadata_count(metadata))
        return client_fail(model->client, -ERANGE, "the model has %zu keys", metadata_count(metadata));
    *ret = *metadata_at(metadata, index);
    return 0;
}

int rf_model_metadata_find(const rf_model *model, const char *key, rf_value *ret)
{
    const struct metadata *metadata = NULL;
    int r = model_read_metadata(model, &metadata);
    if (r < 0)
        return r;
    const rf_value *value = metadata_find(metadata, key);
    if (!value)
        return client_fail(model->client, -ENOENT, "the model has no key '%s'", key);
    *ret = *value;
    return 0;
}

int rf_model_metadata_next(const rf_model *model, const rf_value *array, uint64_t *position, rf_value *ret)
{
    const struct metadata *metadata = NULL;
    int r = model_read_metadata(model, &metadata);
    if (r == 0)
        r = metadata_next(metadata, array, position, ret);
    if (r == -EINVAL)
        return client_fail(model->client, r, "that is no array of the model's, or no position in it");
    return r;
}

const void *rf_model_header(const rf_model *model, size_t *ret_size)
{
    model_map_header((rf_model *)model);
    *ret_size = model->header ? (size_t)model->header_bytes : 0;
    return model->header;
}

/* --- numbers --- */

/* An integer of any type as 64 bits. Returns 1 if it is negative, else 0; -EINVAL: it is none. */
static int value_integer(const rf_value *value, uint64_t *ret)
{
    uint64_t bits = 0;
    if (value->bytes > sizeof(bits))
        return -EINVAL;
    memcpy(&bits, value->data, value->bytes);
    bits = le64toh(bits);
    switch (value->type) {
    case RF_BOOL:
        *ret = bits != 0;
        return 0;
    case RF_U8:
    case RF_U16:
    case RF_U32:
    case RF_U64:
        *ret = bits;
        return 0;
    case RF_I8:
        bits = (uint64_t)(int8_t)bits;
        break;
    case RF_I16:
        bits = (uint64_t)(int16_t)bits;
        break;
    case RF_I32:
        bits = (uint64_t)(int32_t)bits;
        break;
    case RF_I64:
        break;
    default:
        return -EINVAL;
    }
    *ret = bits;
    return (int64_t)bits < 0;
}

int rf_value_u64(const rf_value *value, uint64_t *ret)
{
    uint64_t number;
    if (value_integer(value, &number) != 0)
        return -EINVAL;
    *ret = number;
    return 0;
}

int rf_value_i64(const rf_value *value, int64_t *ret)
{
    uint64_t number;
    int negative = value_integer(value, &number);
    if (negative < 0 || (!negative && number > INT64_MAX))
        return -EINVAL;
    *ret = (int64_t)number;
    return 0;
}

int rf_value_f64(const rf_value *value, double *ret)
{
    if (value->type == RF_F64 && value->bytes == 8) {
        uint64_t bits;
        memcpy(&bits, value->data, sizeof(bits));
        bits = le64toh(bits);
        memcpy(ret, &bits, sizeof(bits));
        return 0;
    }
    if (value->type != RF_F32 || value->bytes != 4)
        return -EINVAL;
    uint32_t bits;
    float number;
    memcpy(&bits, value->data, sizeof(bits));
    bits = le32toh(bits);
    memcpy(&number, &bits, sizeof(number));
    *ret = (double)number;
    return 0;
}
