/* ps and devices: print tables of the models and of the devices. */
#include "client/rfctl/duration.h"
#include "client/rfctl/format.h"
#include "client/rfctl/forms.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/names.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"
#include "client/rfctl/table.h"
#include "client/rfctl/terminal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void add_bytes(struct table *table, const cJSON *object, const char *key)
{
    char text[FORMAT_SIZE];
    double bytes = reply_number(object, key, -1);
    if (bytes < 0)
        table_add(table, NULL);
    else
        table_add(table, "%s", format_bytes(text, bytes));
}

/* "also b, c; file changed; file does not answer". The caller frees it. */
static char *note_text(const cJSON *model)
{
    char *names = names_text(model);
    const bool deleted = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "deleted"));
    const bool changed = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "changed"));
    const bool held_up = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "heldUp"));
    const char *file = deleted && changed ? "file changed, and deleted"
                       : deleted          ? "file deleted"
                       : changed          ? "file changed"
                                          : "";
    char *text = need_text("%s%s%s%s%s%s", names[0] ? "also " : "", names, names[0] && (file[0] || held_up) ? "; " : "",
                           file, file[0] && held_up ? "; " : "", held_up ? "file does not answer" : "");
    free(names);
    return text;
}

static void print_models(const cJSON *models)
{
    static const struct table_column columns[] = {
        {"NAME", TABLE_CUT},
        {"FORM", 0},
        {"DEVICE", 0},
        {"SIZE", TABLE_RIGHT},
        {"STATE", 0},
        {"LEASES", TABLE_RIGHT},
        {"PIN", 0},
        {"IDLE", TABLE_RIGHT},
        {"TTL", TABLE_RIGHT},
        {"OWNER", TABLE_DROP},
        {"ACCESS", TABLE_DROP},
        {"NOTE", TABLE_DROP},
        {0},
    };
    struct table *table = table_new(columns);
    const cJSON *model;
    cJSON_ArrayForEach (model, models) {
        char age[FORMAT_SIZE], ttl[DURATION_SIZE];
        double idle = reply_number(model, "idle", -1), seconds = reply_number(model, "ttl", -1);
        double place = reply_number(model, "position", 0);
        bool pinned = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "pinned"));
        char *form = form_short_text(model);
        table_add(table, "%s", reply_text(model, "name"));
        table_add(table, "%s", form);
        free(form);
        if (strcmp(reply_text(model, "state"), "cached") == 0) /* the bytes are there */
            table_add(table, "host(%s)", reply_text(model, "device"));
        else
            table_add(table, "%s", reply_text(model, "device"));
        add_bytes(table, model, "bytes");
        if (place > 0)
            table_add(table, "%s %.0f", reply_text(model, "state"), place);
        else
            table_add(table, "%s", reply_text(model, "state"));
        table_add(table, "%.0f", reply_number(model, "leases", 0));
        table_add(table, "%s", pinned ? "yes" : "-");
        table_add(table, "%s", idle < 0 ? "-" : format_age(age, idle));
        table_add(table, "%s", seconds < 0 ? "-" : duration_format(ttl, seconds));
        char *owner = user_text(reply_number(model, "uid", 0)), *note = note_text(model);
        table_add(table, "%s", owner);
        table_add(table, "%s", reply_text(model, "access"));
        table_add(table, "%s", note);
        free(owner);
        free(note);
    }
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

int command_ps(struct rfctl *ctl)
{
    cJSON *reply;
    int status = ctl_ask(ctl, "List", NULL, "list models", &reply);
    if (status != STATUS_DONE)
        return status;
    const cJSON *models = reply_items(reply, "models");
    if (!ctl->options.json) {
        if (cJSON_GetArraySize(models) > 0)
            print_models(models);
        else
            err_line("no model is loaded");
    }
    cJSON_Delete(reply);
    return STATUS_DONE;
}

static void print_devices(const cJSON *devices)
{
    static const struct table_column columns[] = {
        {"DEVICE", 0},
        {"NAME", TABLE_CUT},
        {"TOTAL", TABLE_RIGHT},
        {"BUDGET", TABLE_RIGHT},
        {"USED", TABLE_RIGHT},
        {"OTHERS", TABLE_RIGHT},
        {"AVAILABLE", TABLE_RIGHT},
        {"LINK", TABLE_RIGHT},
        {"EXPORT", 0},
        {"STATE", 0},
        {0},
    };
    struct table *table = table_new(columns);
    const cJSON *device;
    cJSON_ArrayForEach (device, devices) {
        char rate[FORMAT_SIZE];
        double link = reply_number(device, "link", -1);
        const char *state = reply_text(device, "state");
        table_add(table, "%s", reply_text(device, "id"));
        table_add(table, "%s", reply_text(device, "name"));
        add_bytes(table, device, "total");
        add_bytes(table, device, "budget");
        add_bytes(table, device, "used");
        add_bytes(table, device, "others");
        add_bytes(table, device, "available");
        table_add(table, "%s", link < 0 ? "" : format_rate(rate, link));
        table_add(table, "%s", reply_text(device, "export"));
        const char *note = cJSON_IsString(cJSON_GetObjectItemCaseSensitive(device, "noKernels")) ? "no kernels" : "";
        double cached = reply_number(device, "cached", 0);
        if (cached > 0)
            table_add(table, "%s of copies", format_bytes(rate, cached));
        else
            table_add(table, "%s", strcmp(state, "ready") == 0 ? note : state);
    }
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

int command_devices(struct rfctl *ctl)
{
    cJSON *reply;
    int status = ctl_ask(ctl, "Devices", NULL, "list devices", &reply);
    if (status != STATUS_DONE)
        return status;
    if (!ctl->options.json)
        print_devices(reply_items(reply, "devices"));
    cJSON_Delete(reply);
    return STATUS_DONE;
}
