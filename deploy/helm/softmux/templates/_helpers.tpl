{{- define "softmux.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "softmux.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "softmux.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "softmux.selector" . }}
{{- end }}

{{- define "softmux.adminSecret" -}}
{{ .Values.adminKey.existingSecret | default (printf "%s-admin" (include "softmux.name" .)) }}
{{- end }}

{{- define "softmux.ownRedis" -}}
{{ if not (or .Values.redis.url .Values.redis.existingSecret) }}yes{{ end }}
{{- end }}

{{- define "softmux.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* A setting's value as the server reads it: Helm has numbers as floats, and would write 2000000 as 2e+06. */ -}}
{{- define "softmux.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end }}
{{- end }}
