#include "client/rfctl/names.h"

#include "client/rfctl/memory.h"
#include "client/rfctl/reply.h"

#include <pwd.h>
#include <stdlib.h>
#include <string.h>

char *user_text(double uid)
{
    const struct passwd *user = uid >= 0 && uid < 4294967295.0 ? getpwuid((uid_t)uid) : NULL;
    return user ? need_text("%s", user->pw_name) : need_text("%.0f", uid);
}

char *names_text(const cJSON *model)
{
    char *text = need_text("%s", "");
    const cJSON *alias;
    cJSON_ArrayForEach (alias, reply_items(model, "aliases")) {
        if (!cJSON_IsString(alias))
            continue;
        char *longer = need_text("%s%s%s", text, text[0] ? ", " : "", alias->valuestring);
        free(text);
        text = longer;
    }
    return text;
}

bool names_have(const cJSON *model, const char *name)
{
    const cJSON *alias;
    cJSON_ArrayForEach (alias, reply_items(model, "aliases")) {
        if (cJSON_IsString(alias) && strcmp(alias->valuestring, name) == 0)
            return true;
    }
    return strcmp(reply_text(model, "name"), name) == 0;
}
