#include "client/rfctl/refusal.h"

#include "client/rfctl/memory.h"
#include "client/rfctl/reply.h"

#include <cjson/cJSON.h>
#include <stddef.h>
#include <string.h>

/* What to do about an error, whatever the command was. */
static const struct {
    const char *name;
    const char *advice;
} general[] = {
    {"io.rocmforge.ModelNotFound", "'rfctl ps' lists the models"},
    {"io.rocmforge.DeviceNotFound", "'rfctl devices' lists them"},
    {"io.rocmforge.NameInUse",
     "take another one with --name; who loaded that model can replace it with load --replace"},
    {"io.rocmforge.OutOfDeviceMemory", "'rfctl ps' lists the models that take it"},
};

static const char *with(const char *advice)
{
    return advice ? "; " : "";
}

static const char *or_nothing(const char *text)
{
    return text ? text : "";
}

/* A model that is not being loaded and has no leases, and still cannot be used for what was asked; NULL: another. */
static const char *state_text(const char *state)
{
    static const struct {
        const char *state, *text;
    } states[] = {
        {"unloading", "it is being unloaded"},
        {"saving", "it is being moved to host memory; try again soon"},
        {"cached", "it is in host memory only; the next client that attaches brings it back"},
    };
    for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
        if (strcmp(states[i].state, state) == 0)
            return states[i].text;
    return NULL;
}

static int is_loading(const char *state)
{
    static const char *const states[] = {"opening", "queued", "allocating", "filling", "sealing"};
    for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
        if (strcmp(states[i], state) == 0)
            return 1;
    return 0;
}

static char *busy_text(const cJSON *parameters, const char *message, const struct refusal_words *words)
{
    const char *state = reply_text(parameters, "state");
    if (words->busy)
        return need_text("%s", words->busy);
    if (is_loading(state))
        return need_text("it is still being loaded%s%s", with(words->loading), or_nothing(words->loading));
    const bool leased = cJSON_GetArraySize(reply_items(parameters, "leases")) > 0;
    if (leased && strcmp(state, "draining") == 0)
        return need_text("%s; it drains already, and is freed when they have detached", message);
    if (leased)
        return need_text("%s%s%s", message, with(words->leased), or_nothing(words->leased));
    const char *text = state_text(state);
    return need_text("%s", text ? text : message);
}

char *refusal_text(const char *name, const char *parameters, const char *message, const struct refusal_words *words)
{
    if (strcmp(name, "io.rocmforge.ModelBusy") == 0) {
        cJSON *object = parameters ? cJSON_Parse(parameters) : NULL;
        char *text = busy_text(object, message, words);
        cJSON_Delete(object);
        return text;
    }
    for (size_t i = 0; i < sizeof(general) / sizeof(general[0]); i++)
        if (strcmp(general[i].name, name) == 0)
            return need_text("%s; %s", message, general[i].advice);
    return need_text("%s", message);
}
