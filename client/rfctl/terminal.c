#include "client/rfctl/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#define WIDTH_DEFAULT 80 /* of a terminal that does not tell its width */

size_t terminal_width(int fd)
{
    struct winsize size;
    if (!isatty(fd))
        return 0;
    if (ioctl(fd, TIOCGWINSZ, &size) < 0 || size.ws_col == 0)
        return WIDTH_DEFAULT;
    return size.ws_col;
}
