#include "daemon/api/methods.h"

#include "daemon/api/methods_list.h"
#include "daemon/base/json_text.h"
#include "daemon/wire/params.h"
#include "proto/interface.h"
#include "proto/min.h"

#include <string.h>

#define INTERFACE     "io.rocmforge"
#define SERVICE       "org.varlink.service"

#define STRING_(text) #text
#define STRING(text)  STRING_(text)

static const struct {
    const char *name;
    void (*handle)(struct api *api, struct call *call);
    bool only_answers;
} methods[] = {
#define X(name, function) {#name, function, false},
    METHODS_THAT_ACT(X)
#undef X
#define X(name, function) {#name, function, true},
        METHODS_FOR_A_REPLY(X)
#undef X
};

#define N_METHODS (sizeof(methods) / sizeof(methods[0]))

static void get_info(struct call *call)
{
    static const struct param none[] = {{0}};
    if (!params_read(call, none, NULL))
        return;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "vendor", "rocmforge");
    cJSON_AddStringToObject(reply, "product", "rocmforged");
    cJSON_AddStringToObject(reply, "version", ROCMFORGE_VERSION " (" INTERFACE " " STRING(INTERFACE_VERSION) ")");
    cJSON_AddStringToObject(reply, "url", ""); /* Varlink wants a string; there is no page yet */
    cJSON *interfaces = cJSON_AddArrayToObject(reply, "interfaces");
    json_append(interfaces, cJSON_CreateString(SERVICE));
    json_append(interfaces, cJSON_CreateString(INTERFACE));
    call_reply(call, reply, NULL, 0);
}

static void get_interface_description(struct call *call)
{
    const char *name = NULL;
    static const struct param table[] = {{"interface", PARAM_STRING, true, 0}, {0}};
    if (!params_read(call, table, &name))
        return;
    const char *text = strcmp(name, INTERFACE) == 0 ? interface_rocmforge
                       : strcmp(name, SERVICE) == 0 ? interface_service
                                                    : NULL;
    cJSON *parameters = cJSON_CreateObject();
    if (!text) {
        cJSON_AddStringToObject(parameters, "interface", name);
        call_fail(call, WIRE_InterfaceNotFound, parameters);
        return;
    }
    cJSON_AddStringToObject(parameters, "description", text);
    call_reply(call, parameters, NULL, 0);
}

static void fail_with(struct call *call, enum wire_error error, const char *key, const char *value)
{
    cJSON *parameters = cJSON_CreateObject();
    json_add_text(parameters, key, value);
    call_fail(call, error, parameters);
}

/* These need nothing of a GPU but what is known of it from before the restart. */
static const char *const early_methods[] = {INTERFACE ".Attach", INTERFACE ".Reattach", INTERFACE ".Detach",
                                            SERVICE ".GetInfo", SERVICE ".GetInterfaceDescription"};

bool methods_hold(const struct call *call, void *context)
{
    const struct api *api = context;
    for (size_t i = 0; i < sizeof(early_methods) / sizeof(early_methods[0]); i++)
        if (strcmp(call->method, early_methods[i]) == 0)
            return false;
    return api->awaits;
}

void methods_dispatch(struct call *call, void *context)
{
    struct api *api = context;
    const char *dot = strrchr(call->method, '.');
    size_t n = dot ? (size_t)(dot - call->method) : 0;
    if (n == strlen(INTERFACE) && strncmp(call->method, INTERFACE, n) == 0) {
        for (size_t i = 0; i < N_METHODS; i++)
            if (strcmp(dot + 1, methods[i].name) == 0) {
                if (call->oneway && methods[i].only_answers)
                    call_reply(call, NULL, NULL, 0); /* the client wants no reply, so the method need not run */
                else
                    methods[i].handle(api, call);
                return;
            }
        fail_with(call, WIRE_MethodNotFound, "method", call->method);
    } else if (n == strlen(SERVICE) && strncmp(call->method, SERVICE, n) == 0) {
        if (strcmp(dot + 1, "GetInfo") == 0)
            get_info(call);
        else if (strcmp(dot + 1, "GetInterfaceDescription") == 0)
            get_interface_description(call);
        else
            fail_with(call, WIRE_MethodNotFound, "method", call->method);
    } else {
        char interface[256];
        size_t size = min_u64(n, sizeof(interface) - 1);
        memcpy(interface, call->method, size);
        interface[size] = '\0';
        fail_with(call, WIRE_InterfaceNotFound, "interface", interface);
    }
}
