/* An auditing library (rtld-audit(7)) that lets everything pass. */
#define _GNU_SOURCE
#include <link.h>

unsigned la_version(unsigned version)
{
	return version < LAV_CURRENT ? version : LAV_CURRENT;
}
