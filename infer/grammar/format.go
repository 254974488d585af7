package grammar

import (
	"fmt"
	"strings"
)

// formats are the claimed values of format, as expressions of whole texts. Each is a subset of what the format allows. Others are
// annotations, as the draft has it.
var formats = formatTable()

func formatTable() map[string]string {
	formats := map[string]string{}
	const (
		dd     = `[0-9]`
		day    = `(?:0[1-9]|1[0-9]|2[0-8])`
		year   = dd + `{4}`
		leap   = `(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)`
		date   = `(?:` + year + `-(?:0[1-9]|1[0-2])-` + day + `|` + year + `-(?:0[13-9]|1[0-2])-(?:29|30)|` + year + `-(?:0[13578]|1[02])-31|` + leap + `-02-29)`
		clock  = `(?:[01][0-9]|2[0-3]):[0-5][0-9]`
		time   = clock + `:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-]` + clock + `)`
		label  = `[A-Za-z0-9](?:-?[A-Za-z0-9]){0,30}`
		host   = label + `(?:\.` + label + `){0,3}`
		atom   = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
		octet  = `(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
		ipv4   = octet + `(?:\.` + octet + `){3}`
		h      = `[0-9A-Fa-f]{1,4}`
		number = `[0-9]{1,9}`
		clocks = `T(?:` + number + `H(?:` + number + `M(?:` + number + `S)?)?|` + number + `M(?:` + number + `S)?|` + number + `S)`
		path   = `[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2}`
	)
	var six []string
	six = append(six, `(?:`+h+`:){7}`+h)
	for left := range 7 { // so many groups before ::, at most 6-left behind
		before := ""
		if left > 0 {
			before = h + fmt.Sprintf(`(?::%s){%d}`, h, left-1)
		}
		behind := ""
		if left < 6 {
			behind = fmt.Sprintf(`(?:%s(?::%s){0,%d})?`, h, h, 5-left)
		}
		six = append(six, before+`::`+behind)
	}
	formats["date"] = date
	formats["time"] = time
	formats["date-time"] = date + `T` + time
	formats["duration"] = `P(?:` + number + `W|(?:` + number + `Y(?:` + number + `M(?:` + number + `D)?)?|` + number + `M(?:` + number + `D)?|` +
		number + `D)(?:` + clocks + `)?|` + clocks + `)`
	formats["uuid"] = `[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}`
	formats["hostname"] = host
	formats["email"] = atom + `{1,20}(?:\.` + atom + `{1,20}){0,2}@` + label + `(?:\.` + label + `){1,3}`
	formats["ipv4"] = ipv4
	formats["ipv6"] = strings.Join(six, "|")
	formats["uri"] = `[A-Za-z][A-Za-z0-9+.-]{0,15}://` + host + `(?::[0-9]{1,4})?(?:/(?:` + path + `)*)*(?:\?(?:` + path + `|[/?])*)?(?:#(?:` + path + `|[/?])*)?`
	return formats
}
