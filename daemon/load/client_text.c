#include "daemon/load/client_text.h"

#include "daemon/base/closer.h"

#include <stdlib.h>

bool client_text_given(const struct client_text *text)
{
    return text->text || text->fd >= 0;
}

void client_text_clear(struct client_text *text)
{
    free(text->text);
    if (text->fd >= 0)
        closer_close(text->closer, text->uid, text->fd);
    *text = CLIENT_TEXT_NONE;
}
