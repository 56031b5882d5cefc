// Prompts as Ollama makes them, by its documentation: read a Modelfile, then execute its template over conversations.
//
// Input (JSON): {"modelfile": text, "conversations": [[{"role": text, "content": text}]]}
// Output (JSON): {"prompts": [text], "commands": [[name, value]]}
package main

import (
	"encoding/json"
	"errors"
	"log"
	"os"
	"strings"
	"text/template"
	"unicode"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// A quoted value ends at a line end behind its closing marks. Characters that Go does not print are left out.
func readModelfile(text string) (commands [][2]string, err error) {
	for text = strings.TrimLeft(text, " \t\r\n"); text != ""; text = strings.TrimLeft(text, " \t\r\n") {
		line, rest, _ := strings.Cut(text, "\n")
		if strings.HasPrefix(line, "#") {
			text = rest
			continue
		}
		name, value, found := strings.Cut(line, " ")
		if !found {
			return nil, errors.New("a command without a value: " + line)
		}
		name = strings.ToLower(name)
		if name == "parameter" {
			name, value, _ = strings.Cut(value, " ")
		}
		for {
			if word, ok := unquoted(strings.TrimSpace(value)); ok {
				commands = append(commands, [2]string{name, printable(word)})
				break
			}
			if rest == "" {
				return nil, errors.New("a quoted value without an end: " + name)
			}
			line, rest, _ = strings.Cut(rest, "\n")
			value += "\n" + line
		}
		text = rest
	}
	return commands, nil
}

func unquoted(value string) (string, bool) {
	for _, marks := range []string{`"""`, `"`} {
		if strings.HasPrefix(value, marks) {
			inner := strings.TrimPrefix(value, marks)
			return strings.TrimSuffix(inner, marks), strings.HasSuffix(inner, marks)
		}
	}
	return value, true
}

func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || strings.ContainsRune("\t\r\n", r) {
			return r
		}
		return -1
	}, text)
}

// System messages are collected, and consecutive messages of one role become one.
func prompt(parsed *template.Template, system string, given []message) (string, error) {
	if system != "" && (len(given) == 0 || given[0].Role != "system") {
		given = append([]message{{"system", system}}, given...)
	}
	var systems []string
	var messages []*message
	for i, one := range given {
		if one.Role == "system" {
			systems = append(systems, one.Content)
		}
		if end := len(messages) - 1; end >= 0 && messages[end].Role == one.Role && one.Role != "tool" {
			messages[end].Content += "\n\n" + one.Content
		} else {
			messages = append(messages, &given[i])
		}
	}
	var text strings.Builder
	err := parsed.Execute(&text, map[string]any{
		"System": strings.Join(systems, "\n\n"), "Messages": messages, "Tools": nil, "Response": "",
	})
	return text.String(), err
}

func run() error {
	var input struct {
		Modelfile     string
		Conversations [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		return err
	}
	commands, err := readModelfile(input.Modelfile)
	if err != nil {
		return err
	}
	values := map[string]string{}
	for _, command := range commands {
		values[command[0]] = command[1]
	}
	functions := template.FuncMap{"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	}}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(values["template"])
	if err != nil {
		return err
	}
	prompts := []string{}
	for _, conversation := range input.Conversations {
		text, err := prompt(parsed, values["system"], conversation)
		if err != nil {
			return err
		}
		prompts = append(prompts, text)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"prompts": prompts, "commands": commands})
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
