#include "common/version.h"

#ifndef DD2_CODE_VERSION
#error "common/CMakeLists.txt sets DD2_CODE_VERSION for this file"
#endif

namespace dd2 {

std::string_view CodeVersion() { return DD2_CODE_VERSION; }

}  // namespace dd2
