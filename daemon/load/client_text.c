#include "daemon/load/client_text.h"

#include <stdlib.h>
#include <unistd.h>

bool client_text_given(const struct client_text *text)
{
    return text->text || text->fd >= 0;
}

void client_text_clear(struct client_text *text)
{
    free(text->text);
    if (text->fd >= 0)
        close(text->fd);
    *text = CLIENT_TEXT_NONE;
}
