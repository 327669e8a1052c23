/* The import module for memory of the host. It is part of the library. */
#pragma once

#include "client/import.h"

extern const struct import_module import_host_module;
