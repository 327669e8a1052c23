/* What rocmforge.h tells of an attached model. */
#include "client/attached.h"
#include "client/error.h"
#include "client/import.h"

#include <errno.h>
#include <inttypes.h>

const char *rf_model_name(const rf_model *model)
{
    return model->name;
}

uint64_t rf_model_id(const rf_model *model)
{
    return model->id;
}

const char *rf_model_device(const rf_model *model)
{
    return model->device;
}

const char *rf_model_device_kind(const rf_model *model)
{
    return model->kind;
}

const char *rf_model_device_uuid(const rf_model *model)
{
    return model->uuid;
}

const char *rf_model_device_pci(const rf_model *model)
{
    return model->pci;
}

const void *rf_model_data(const rf_model *model)
{
    return model->mapping ? model->mapping->data : NULL;
}

uint64_t rf_model_bytes(const rf_model *model)
{
    return model->bytes;
}

int rf_model_read(const rf_model *model, uint64_t offset, void *dst, size_t size)
{
    if (offset > model->bytes || size > model->bytes - offset)
        return client_fail(model->client, -ERANGE, "the model has %" PRIu64 " bytes", model->bytes);
    if (size == 0)
        return 0;
    struct import_fault fault = {{0}};
    int r = model->module->read(model->mapping, offset, dst, size, &fault);
    return r < 0 ? client_fail(model->client, r, "%s", fault.text) : 0;
}
