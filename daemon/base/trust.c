#include "daemon/base/trust.h"

#include <unistd.h>

bool trusted_user(uid_t uid)
{
    return uid == 0 || uid == getuid();
}
