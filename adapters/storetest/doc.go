// Package storetest holds every adapters.Store to its contract. A store's own test calls Run and, where the store
// survives its process, Script in a child that is killed and CheckScript on what it left.
package storetest
