/* The texts of the daemon's Varlink interfaces. GetInterfaceDescription returns them. */
#pragma once

/* The version of io.rocmforge, as its text, GetInfo and Status tell it. It changes when a field, a parameter or an
 * error changes its meaning or goes; not when one is added. */
#define INTERFACE_VERSION 1

/* io.rocmforge: the content of proto/io.rocmforge.varlink. */
extern const char interface_rocmforge[];

/* org.varlink.service, as varlink.org defines it. */
extern const char interface_service[];
