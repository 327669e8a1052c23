/* The texts of the daemon's Varlink interfaces. GetInterfaceDescription returns them. */
#pragma once

/* io.rocmforge: the content of proto/io.rocmforge.varlink. */
extern const char interface_rocmforge[];

/* org.varlink.service, as varlink.org defines it. */
extern const char interface_service[];
